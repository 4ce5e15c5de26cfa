from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.checkpoints import config_of, convert, inspect_file, load_model, save_model
from cascade.checkpoints.layouts import DIFFUSERS_FOLDERS, LAYOUTS, from_ours, rules, to_ours
from cascade.errors import BrokenCheckpoint, UnknownCheckpoint
from tests.checkpoints.files import CONFIGS, comfyui_state, network, released_state, same_outputs, same_weights, save
from tests.small import part as small_part

pytestmark = pytest.mark.numeric

KINDS = tuple(CONFIGS)
ALONE = ("controlnet", "high_res_guide", "high_res_guides", "ip_adapter", "prior", "style_descriptor")
MERGED = tuple(kind for kind in KINDS if kind not in ALONE)


def state_of(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def check(kind: str, source: Any, **options: Any) -> None:
    """It loads, to the same config and bit for bit the same weights, and computes the same."""
    net = load_model(source, **options)
    assert not net.training
    assert config_of(net) == CONFIGS[kind]
    assert same_weights(net, network(kind))
    assert same_outputs(kind, net, network(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_released_single_file(kind: str, tmp_path: Path) -> None:
    check(kind, save(tmp_path / "file.safetensors", released_state(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_under_released_and_our_names(kind: str) -> None:
    check(kind, released_state(kind))
    check(kind, network(kind).state_dict(), part=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_model(network(kind), path)
    check(kind, path)
    assert inspect_file(path).layout == "cascade"
    # The names are the released ones, for every other program that reads them.
    written, expected = state_of(path), released_state(kind)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", MERGED)
def test_comfyui_checkpoint(kind: str, tmp_path: Path) -> None:
    others = [other for other in ("stage_b", "stage_a", "text_encoder") if other != kind and kind != "stage_c"]
    path = save(tmp_path / "merged.safetensors", comfyui_state(kind, *others))
    check(kind, path, part=kind)


def test_what_comfyui_adds_is_left_alone(tmp_path: Path) -> None:
    state = comfyui_state("stage_c", "effnet", "text_encoder")
    projection = state.pop("text_encoder.clip_g.transformer.text_projection.weight")
    state |= {
        "vae.encoder.mean": torch.zeros(3),
        "vae.encoder.std": torch.ones(3),
        "text_encoder.clip_g.logit_scale": torch.tensor(1.0),
        "text_encoder.clip_g.text_projection": projection.t(),
        "text_encoder.clip_g.transformer.text_model.embeddings.position_ids": torch.arange(9)[None],
    }
    path = save(tmp_path / "merged.safetensors", state)
    check("effnet", path, part="effnet")
    check("text_encoder", path, part="text_encoder")


def test_attention_that_is_split_already(tmp_path: Path) -> None:
    """As ComfyUI writes a model that it had loaded."""
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in network("stage_c").state_dict().items()}
    check("stage_c", save(tmp_path / "saved.safetensors", state))


@pytest.mark.parametrize("kind", ["text_encoder", "image_encoder"])
def test_older_clip_files_hold_position_ids(kind: str) -> None:
    tower = {"text_encoder": "text_model", "image_encoder": "vision_model"}[kind]
    check(kind, released_state(kind) | {f"{tower}.embeddings.position_ids": torch.arange(5)[None]})


@pytest.mark.parametrize("kind", DIFFUSERS_FOLDERS)
def test_diffusers_folder_and_shards(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "file.safetensors"
    save_model(network(kind), source)
    convert(source, tmp_path / "folder", layout="diffusers")
    check(kind, tmp_path / "folder")
    assert inspect_file(tmp_path / "folder").layout == "diffusers"
    sharded = shard(tmp_path / "folder", tmp_path / "shards")
    check(kind, sharded)
    check(kind, next(sharded.glob("*.index.json")))


def shard(folder: Path, target: Path) -> Path:
    """The single file of a folder in three, as diffusers writes large ones."""
    file = next(folder.glob("*.safetensors"))
    state = state_of(file)
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    weight_map = {}
    for index in range(3):
        name = f"{file.stem}-{index + 1:05}-of-00003.safetensors"
        names = list(state)[index::3]
        save(target / name, {name: state[name] for name in names})
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (target / f"{file.stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return target


@pytest.mark.parametrize("kind", DIFFUSERS_FOLDERS)
def test_diffusers_takes_what_is_written(kind: str, tmp_path: Path) -> None:
    """Its own class, from config.json alone, has exactly the names and shapes of the file."""
    pytest.importorskip("diffusers")
    from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    save_model(network(kind), tmp_path / "file.safetensors")
    convert(tmp_path / "file.safetensors", tmp_path / "folder", layout="diffusers")
    config = json.loads((tmp_path / "folder" / "config.json").read_text(encoding="utf-8"))
    towers = {"text_encoder": CLIPTextModelWithProjection, "image_encoder": CLIPVisionModelWithProjection}
    with torch.device("meta"):
        if kind in towers:
            theirs = towers[kind](towers[kind].config_class(**config))
        else:
            cls = PaellaVQModel if kind == "stage_a" else StableCascadeUNet
            assert config["_class_name"] == cls.__name__
            theirs = cls.from_config(config)
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    written = state_of(next((tmp_path / "folder").glob("*.safetensors")))
    assert {name: tensor.shape for name, tensor in written.items()} == expected


def test_a_pipeline_folder_gives_each_network(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}", encoding="utf-8")
    for kind in ("stage_b", "stage_a"):
        save_model(network(kind), tmp_path / f"{kind}.safetensors")
        target = tmp_path / "pipeline" / DIFFUSERS_FOLDERS[kind]
        convert(tmp_path / f"{kind}.safetensors", target, layout="diffusers")
    for kind in ("stage_b", "stage_a"):
        check(kind, tmp_path / "pipeline", part=kind)


@pytest.mark.parametrize("kind", ["stage_c", "stage_b", "text_encoder", "image_encoder", "effnet", "stage_a"])
def test_heads_and_the_like_travel_with_our_layouts(kind: str, tmp_path: Path) -> None:
    """Sizes that follow no released rule: metadata and config.json carry what shapes do not tell."""
    net = small_part(kind)
    one = tmp_path / "one.safetensors"
    save_model(net, one)
    assert config_of(load_model(one)) == config_of(net)
    convert(one, tmp_path / "merged.safetensors", layout="comfyui")
    assert config_of(load_model(tmp_path / "merged.safetensors")) == config_of(net)
    if kind in DIFFUSERS_FOLDERS:
        convert(one, tmp_path / "folder", layout="diffusers")
        assert config_of(load_model(tmp_path / "folder")) == config_of(net)


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_nested_or_not(kind: str, tmp_path: Path) -> None:
    torch.save(released_state(kind), tmp_path / "plain.pt")
    check(kind, tmp_path / "plain.pt")
    torch.save({"state_dict": released_state(kind), "step": 5}, tmp_path / "nested.ckpt")
    check(kind, tmp_path / "nested.ckpt")
    torch.save(released_state(kind), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    check(kind, tmp_path / "old.ckpt")
    (tmp_path / "plain.pt").rename(tmp_path / "misnamed.safetensors")
    check(kind, tmp_path / "misnamed.safetensors")


@pytest.mark.parametrize("kind", ["stage_c", "stage_b", "stage_a", "text_encoder", "image_encoder"])
def test_a_round_through_all_layouts_is_exact(kind: str, tmp_path: Path) -> None:
    first = save(tmp_path / "first.safetensors", released_state(kind))
    convert(first, tmp_path / "folder", layout="diffusers")
    convert(tmp_path / "folder", tmp_path / "merged.safetensors", layout="comfyui")
    convert(tmp_path / "merged.safetensors", tmp_path / "last.safetensors")
    one, other = state_of(first), state_of(tmp_path / "last.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_table_reads_what_it_writes(kind: str, layout: str) -> None:
    ours = list(network(kind).state_dict())
    table = rules(layout, kind)
    theirs = from_ours(ours, table)
    back = to_ours(theirs, table)
    assert sorted(back) == sorted(ours)
    for name, held in theirs.items():
        assert [back[each].name for each in held] == [name] * len(held)
        assert [back[each].index for each in held] == list(range(len(held)))


def test_shards_that_lie(tmp_path: Path) -> None:
    save_model(network("stage_a"), tmp_path / "file.safetensors")
    convert(tmp_path / "file.safetensors", tmp_path / "folder", layout="diffusers")
    folder = shard(tmp_path / "folder", tmp_path / "shards")
    index = next(folder.glob("*.index.json"))
    content = json.loads(index.read_text(encoding="utf-8"))

    def broken(weight_map: Any, match: str) -> None:
        index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
        with pytest.raises(BrokenCheckpoint, match=match):
            load_model(folder)

    good = content["weight_map"]
    broken(good | {"more.weight": next(iter(good.values()))}, "1 tensors are in no shard")
    broken(good | {"more.weight": "../file.safetensors"}, "a file in another folder")
    broken(good | {"more.weight": "not-there.safetensors"}, "not-there.safetensors is missing")
    broken([], "without a weight_map")
    index.write_text("{", encoding="utf-8")
    with pytest.raises(BrokenCheckpoint, match="not readable as JSON"):
        load_model(folder)


def test_folders_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownCheckpoint, match="a folder without weights"):
        load_model(tmp_path)
    save_model(network("stage_a"), tmp_path / "a.safetensors")
    save_model(network("previewer"), tmp_path / "b.safetensors")
    with pytest.raises(UnknownCheckpoint, match="give the path of one of them"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("down", "up"), [("module.64.", "module.65."), ("net.agg_net.", "net.agg_net_up."), ("9.", "10."), ("down.", "up.")]
)
def test_high_res_guides_under_other_names(down: str, up: str, tmp_path: Path) -> None:
    """The released file is a pickle of a whole list's names; converted files are said to have prefixes of their own."""
    state = network("high_res_guides").state_dict()
    named = {name.replace("down.", down).replace("up.", up): tensor for name, tensor in state.items()}
    path = tmp_path / "ultrapixel_t2i.safetensors"
    torch.save(named, path)
    check("high_res_guides", path)
