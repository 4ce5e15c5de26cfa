from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from cascade.checkpoints import convert, inspect_file, load_model, save_model, saving
from cascade.errors import CheckpointError, IncompatibleCheckpoint
from tests.checkpoints.files import comfyui_state, network, released_state, same_outputs, same_weights, save

pytestmark = pytest.mark.numeric


def test_types_on_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_model(network("effnet"), path, dtype=torch.bfloat16)
    with safe_open(path, "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert dtypes.pop("mapper.1.num_batches_tracked") == torch.int64
    assert {dtype for dtype in dtypes.values() if dtype.is_floating_point} == {torch.bfloat16}
    # In place: a network whose tensors are the file's own bytes is written over that file.
    net = load_model(path, dtype=None)
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_model(net, path)
    again = load_model(path).state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_float8_is_for_matrices(tmp_path: Path) -> None:
    source = save(tmp_path / "source.safetensors", released_state("stage_c"))
    convert(source, tmp_path / "small.safetensors", dtype=torch.float8_e4m3fn)
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        assert file.get_tensor("clip_txt_mapper.weight").dtype == torch.float8_e4m3fn
        assert file.get_tensor("clip_txt_mapper.bias").dtype == torch.float32
        name = "down_blocks.0.2.attention.attn.in_proj_weight"
        assert torch.equal(file.get_tensor(name), released_state("stage_c")[name].to(torch.float8_e4m3fn))
    save_model(network("stage_c"), tmp_path / "saved.safetensors", dtype=torch.float8_e4m3fn)
    one, other = (load_model(tmp_path / f"{name}.safetensors") for name in ("small", "saved"))
    assert same_weights(one, other)
    assert same_outputs("stage_c", one, other)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("kind", ["stage_b", "effnet"])
def test_tensors_are_aligned(kind: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    """Where they lie in memory too, as they are mapped."""
    path = tmp_path / "file.safetensors"
    save_model(network(kind), path, dtype=dtype)
    with safe_open(path, "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        assert any(tensor.nbytes % 64 for tensor in tensors)
        assert all(tensor.data_ptr() % (tensor.itemsize if tensor.nbytes % 64 else 64) == 0 for tensor in tensors)


@pytest.mark.parametrize("length", range(1, 65, 7))
def test_data_begin_at_a_multiple_of_64_bytes(length: int, tmp_path: Path) -> None:
    path, tensors = tmp_path / "file.safetensors", {"a" * length: torch.ones(3), "b": torch.zeros(16)}
    saving.save_tensors(tensors, path, {"about": "a test"})
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_several_files_become_one_checkpoint(tmp_path: Path) -> None:
    kinds = ("stage_b", "stage_a", "text_encoder")
    for kind in kinds:
        save_model(network(kind), tmp_path / f"{kind}.safetensors")
    target = tmp_path / "merged.safetensors"
    steps: list[tuple[int, int]] = []
    sources = [tmp_path / f"{kind}.safetensors" for kind in kinds]
    convert(sources, target, layout="comfyui", on_tensor=lambda done, total: steps.append((done, total)))
    with safe_open(target, "pt") as file:
        names = set(file.keys())
    assert names == set(comfyui_state(*kinds))
    assert steps == [(i + 1, len(names)) for i in range(len(names))]
    for kind in kinds:
        net = load_model(target, part=kind)
        assert same_weights(net, network(kind))
        assert same_outputs(kind, net, network(kind))
    # and the whole checkpoint as it is, in another type
    convert(target, tmp_path / "half.safetensors", layout="comfyui", dtype=torch.float16)
    assert inspect_file(tmp_path / "half.safetensors").dtype == "float16"
    assert len(inspect_file(tmp_path / "half.safetensors").parts) == 3


def test_a_source_is_never_written_over(tmp_path: Path) -> None:
    source = save(tmp_path / "file.safetensors", released_state("previewer"))
    before = source.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(source)
    for target in (source, tmp_path / "." / "file.safetensors", tmp_path / "link.safetensors"):
        with pytest.raises(CheckpointError, match="source and target are the same"):
            convert(source, target)
    assert source.read_bytes() == before


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    source = save(tmp_path / "source.safetensors", released_state("controlnet"))
    target = tmp_path / "target"
    with pytest.raises(ValueError, match="layout must be one of"):
        convert(source, target, layout="tar")
    with pytest.raises(ValueError, match="no place for a controlnet"):
        convert(source, target, layout="comfyui")
    with pytest.raises(IncompatibleCheckpoint, match="diffusers has no ControlNet"):
        convert(source, target, layout="diffusers")
    other = save(tmp_path / "other.safetensors", released_state("previewer"))
    with pytest.raises(ValueError, match="cascade cannot hold controlnet, previewer together"):
        convert([source, other], target)
    with pytest.raises(ValueError, match="comfyui cannot hold previewer, previewer together"):
        convert([other, other], target, layout="comfyui")
    assert not target.exists()
    with pytest.raises(TypeError, match="a Linear is not a part of Stable Cascade"):
        save_model(nn.Linear(1, 1), target)


def test_a_folder_that_is_not_empty_stays(tmp_path: Path) -> None:
    source = save(tmp_path / "source.safetensors", released_state("stage_a"))
    (tmp_path / "folder").mkdir()
    convert(source, tmp_path / "folder", layout="diffusers")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="not empty"):
        convert(source, tmp_path / "folder", layout="diffusers")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("layout", saving.LAYOUTS)
def test_a_failure_leaves_what_was_there(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "source.safetensors", released_state("stage_a"))
    target = tmp_path / "target"
    if layout != "diffusers":
        target.write_bytes(b"what was there")

    def fails(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, target, layout=layout, on_tensor=fails)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, *([] if layout == "diffusers" else ["target"])}
    assert layout == "diffusers" or target.read_bytes() == b"what was there"


def test_a_source_that_does_not_fit_leaves_no_target(tmp_path: Path) -> None:
    state: dict[str, Any] = released_state("stage_a")
    del state["out_block.0.bias"]
    source = save(tmp_path / "source.safetensors", state)
    with pytest.raises(IncompatibleCheckpoint, match=r"missing: out_block.0.bias"):
        convert(source, tmp_path / "target.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]
