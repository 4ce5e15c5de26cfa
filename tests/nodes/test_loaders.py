"""Files: which are offered, which are taken, and what is said of wrong ones."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.checkpoints import convert
from tests.nodes import networks
from tests.nodes.graphs import sampled
from tests.nodes.hosting import Anything, Failed, Graph, Refused
from tests.nodes.networks import file_name

OUTPUTS = ("stage_c", "stage_b", "clip", "vae", "encoder", "clip_vision", "report")


def checkpoint(host: Any, name: str, second: str = "auto", dtype: str = "fp32") -> dict[str, Any]:
    loaded = host.call("CascadeLoadCheckpoint", ckpt_name=name, second_ckpt_name=second, weight_dtype=dtype)
    return dict(zip(OUTPUTS, loaded, strict=True))


def test_a_checkpoint_is_completed_from_the_folders(host: Any) -> None:
    found = checkpoint(host, "small_c.safetensors")
    report = found["report"]
    assert f"Stage C: {host.models / 'checkpoints' / 'small_c.safetensors'}" in report
    assert "Stage B: " in report
    assert "not found" not in report
    assert found["clip"].encode("a").shape[-1] == networks.WIDTH
    assert found["encoder"].first_stage_model.previewer is not None


def test_two_checkpoints(host: Any) -> None:
    report = checkpoint(host, "small_c.safetensors", "small_b.safetensors")["report"]
    for kind in ("Stage B", "Stage A"):
        assert f"{kind}: {host.models / 'checkpoints' / 'small_b.safetensors'}" in report


def test_loose_files(host: Any) -> None:
    report = checkpoint(host, "search my folders")["report"]
    assert f"Stage C: {host.models / 'diffusion_models' / file_name('stage_c')}" in report


def test_a_folder_of_diffusers(host: Any) -> None:
    folder = host.models / "diffusers" / "small" / "prior"
    convert(host.models / "diffusion_models" / file_name("stage_c"), folder, layout="diffusers")
    (folder.parent / "model_index.json").write_text("{}", encoding="utf-8")
    options = host.classes["CascadeLoadCheckpoint"].INPUT_TYPES()["required"]["ckpt_name"][1]["options"]
    assert "small/" in options
    assert f"Stage C: {folder}" in checkpoint(host, "small/")["report"]


def test_what_is_missing_is_said_where_it_is_wanted(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_sets = host.pack("nodes.host.checkpoint_sets")
    monkeypatch.setattr(checkpoint_sets.folders, "model_folders", lambda: [])
    graph = Graph()
    loaded = graph(
        "CascadeLoadCheckpoint", ckpt_name="small_b.safetensors", second_ckpt_name="auto", weight_dtype="default"
    )
    text = graph("CascadeTextEncode", clip=loaded[2], positive="a", negative="")
    graph("Kept", name="text", value=text)
    host.run(graph)
    with pytest.raises(Failed, match="found no Stage C: put one into ComfyUI's diffusion_models folder"):
        host.run(graph, model=loaded[0])
    with pytest.raises(host.errors.CascadeError, match="no network of Stable Cascade"):
        checkpoint(host, "search my folders")


@pytest.mark.parametrize("name", ["missing.safetensors", "../../secret.safetensors", "/etc/passwd", ""])
def test_files_that_are_not_offered_are_refused(host: Any, name: str) -> None:
    graph = Graph()
    loaded = graph("CascadeLoadStageB", unet_name=name, weight_dtype="default")
    with pytest.raises(Refused, match="not in list"):
        host.run(graph, model=loaded)
    with pytest.raises(host.errors.CascadeError, match=r"not in ComfyUI's|is missing"):
        host.call("CascadeLoadStageB", unet_name=name, weight_dtype="default")


def test_a_file_is_loaded_once_until_it_changes(host: Any, loads: list[Path]) -> None:
    host.run(sampled("none"), fresh=True)
    host.run(sampled("none"))
    assert len(loads) == 1
    path = host.models / "diffusion_models" / file_name("stage_c")
    os.utime(path, ns=(1, 1))
    host.run(sampled("none"))
    assert len(loads) == 2


@pytest.fixture
def another(host: Any) -> Iterator[Path]:
    """A place for one more Stage C, of bfloat16: of equal networks a search takes the smaller file."""
    path = host.models / "diffusion_models" / "another.safetensors"
    yield path
    path.unlink(missing_ok=True)


def smaller(host: Any, path: Path) -> None:
    convert(host.models / "diffusion_models" / file_name("stage_c"), path, dtype=torch.bfloat16)


def test_a_search_is_repeated_when_files_come(host: Any, another: Path) -> None:
    def report() -> str:
        graph = Graph()
        loaded = graph(
            "CascadeLoadCheckpoint", ckpt_name="search my folders", second_ckpt_name="auto", weight_dtype="fp32"
        )
        return host.run(graph, report=loaded[6]).report

    first = report()
    smaller(host, another)
    assert str(another) in report()
    another.unlink()
    assert report() == first


@pytest.fixture
def loads(host: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of the stages that are loaded from now on."""
    seen: list[Path] = []
    for module in (host.pack("nodes.loaders"), host.pack("nodes.host.checkpoint_sets")):
        load = module.load_stage
        monkeypatch.setattr(module, "load_stage", lambda *args, load=load: seen.append(args[1]) or load(*args))
    return seen


def test_a_whole_cascade_is_loaded_once_until_a_part_changes(host: Any, loads: list[Path]) -> None:
    def run() -> int:
        graph = Graph()
        loaded = graph(
            "CascadeLoadCheckpoint", ckpt_name="small_c.safetensors", second_ckpt_name="auto", weight_dtype="fp32"
        )
        host.run(graph, report=loaded[6])
        return len(loads)

    first = run()
    assert run() == first
    # Stage B comes from another file than the one that was chosen.
    os.utime(loads[-1], ns=(1, 1))
    assert run() > first


class AnyChoice:
    """A node whose output may be connected to a choice."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"name": ("STRING", {})}})
    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "choose"
    CATEGORY = "tests"

    def choose(self, name: str) -> tuple[str]:
        return (name,)


def test_a_choice_that_is_connected(
    host: Any, loads: list[Path], another: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(host.classes, "AnyChoice", AnyChoice)
    smaller(host, another)

    def run() -> int:
        graph = Graph()
        file = graph("AnyChoice", name=another.name)
        loaded = graph("CascadeLoadStageC", unet_name=file, weight_dtype="fp32", previewer="none")
        host.run(graph, model=loaded)
        return len(loads)

    assert run() == 1
    assert run() == 1
    os.utime(another, ns=(1, 1))
    assert run() == 2
    assert loads == [another, another]


def test_fingerprints_name_no_folder(host: Any) -> None:
    """ComfyUI writes them into the images."""
    for node, inputs in {
        "CascadeLoadStageC": {"unet_name": file_name("stage_c"), "previewer": "auto", "weight_dtype": "default"},
        "CascadeLoadEncoder": {"vae_name": None, "previewer": "auto", "weight_dtype": "default"},
        "CascadeLoadCheckpoint": {
            "ckpt_name": "search my folders",
            "second_ckpt_name": "auto",
            "weight_dtype": "default",
        },
    }.items():
        assert re.fullmatch(r"[0-9a-f]{16}", host.classes[node].fingerprint_inputs(**inputs))


def test_models_are_let_go(host: Any) -> None:
    """Neither previews nor cached conditions keep a model alive that the host has forgotten."""
    import comfy.model_management

    def alive() -> int:
        gc.collect()
        kind = host.pack("nodes.host.networks").HostStageC
        return sum(isinstance(each, kind) for each in gc.get_objects())

    def forget() -> int:
        host.executor.reset()
        comfy.model_management.unload_all_models()
        comfy.model_management.cleanup_models_gc()
        return alive()

    before = forget()
    for previewer in ("auto", "none", file_name("previewer")):
        host.run(sampled(previewer), fresh=True)
    assert forget() <= before


def test_newer_hosts_can_load_a_model_again(host: Any) -> None:
    found = checkpoint(host, "small_c.safetensors")
    for patcher in (found["stage_c"], found["stage_b"], found["clip"].patcher, found["vae"].patcher):
        make, arguments = patcher.cached_patcher_init
        again = make(*arguments, disable_dynamic=True)
        for name, value in patcher.model_state_dict().items():
            assert torch.equal(again.model_state_dict()[name], value), name


@pytest.mark.parametrize("dtype", ["default", "bf16", "fp16", "fp32", "fp8_e4m3fn"])
def test_types_of_the_text_encoder(host: Any, dtype: str) -> None:
    exact = host.call("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")[0].encode(
        "a red circle"
    )
    found = host.call("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype=dtype)[0].encode(
        "a red circle"
    )
    assert float((found - exact).abs().max() / exact.abs().max()) < (0.3 if dtype == "fp8_e4m3fn" else 0.05)


def test_float8_files_stay_float8(host: Any) -> None:
    original = host.models / "diffusion_models" / file_name("stage_c")
    path = original.with_name("small_stage_c_fp8.safetensors")
    convert(original, path, dtype=torch.float8_e4m3fn)
    read = host.pack("nodes.host.files").read
    _, state = read(path, "stage_c")
    assert state["down_blocks.0.2.attention.attn.to_q.weight"].dtype == torch.float8_e4m3fn
    model = host.call("CascadeLoadStageC", unet_name=path.name, weight_dtype="default", previewer="none")[0]
    assert model.model_dtype() in (torch.float8_e4m3fn, torch.float32)
    path.unlink()


def test_a_page_saved_as_a_model_is_explained(host: Any) -> None:
    path = Path(host.models / "diffusion_models" / "page.safetensors")
    path.write_text("<!DOCTYPE html><html>Sign in</html>", encoding="utf-8")
    graph = Graph()
    loaded = graph("CascadeLoadStageC", unet_name=path.name, weight_dtype="default", previewer="auto")
    with pytest.raises(Failed, match=r"CascadeLoadStageC: .*page.safetensors: this is a web page"):
        host.run(graph, model=loaded)
    path.unlink()
