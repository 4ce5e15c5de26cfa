"""Files of instruct networks: what is read again, and what is refused, by them and by other loaders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cascade.adapters import InstructNetwork, read_instruct, read_lora, save_instruct
from cascade.checkpoints import inspect_file, load_model, save_model
from cascade.errors import BrokenCheckpoint, CheckpointError, UnknownCheckpoint
from tests import small


@pytest.fixture
def network() -> InstructNetwork:
    return small.instruct_network()


@pytest.fixture
def file(network: InstructNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "instruct.safetensors"
    save_instruct(network, path)
    return path


def test_a_file_gives_the_network_again(network: InstructNetwork, file: Path) -> None:
    found = read_instruct(file)
    assert found.net.config == network.net.config
    for name, value in network.net.state_dict().items():
        assert torch.equal(found.net.state_dict()[name], value)
    changes, read = network.lora.changes["stage_c"], found.lora.changes["stage_c"]
    assert changes.keys() == read.keys()
    for name, change in changes.items():
        weight = small.part("stage_c").get_parameter(name)
        assert torch.equal(read[name].delta(weight), change.delta(weight))
    assert found.lora.path == str(file)


def test_halves_take_half_the_room(network: InstructNetwork, file: Path, tmp_path: Path) -> None:
    save_instruct(network, tmp_path / "half.safetensors", dtype=torch.float16)
    stored = load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.dim()} == {torch.float16}
    assert read_instruct(tmp_path / "half.safetensors").net.config == network.net.config


def test_inspecting_says_what_it_is(file: Path) -> None:
    found = inspect_file(file)
    assert found.kind == "instruct"
    assert found.variant == "Instruct network, for a Stage C of width 16"
    assert (found.layout, found.folder, found.dtype) == ("cascade", "controlnet", "float32")
    assert found.parameters == sum(tensor.numel() for tensor in load_file(file).values())


def test_other_loaders_name_it(file: Path) -> None:
    with pytest.raises(UnknownCheckpoint, match="this is an instruct network"):
        load_model(file)
    with pytest.raises(UnknownCheckpoint, match="this is an instruct network"):
        load_model(file, part="controlnet")
    with pytest.raises(UnknownCheckpoint, match="this is an instruct network"):
        read_lora(file)


def test_other_files_are_named(network: InstructNetwork, tmp_path: Path) -> None:
    save_model(network.net, tmp_path / "net.safetensors")
    with pytest.raises(UnknownCheckpoint, match="this is ControlNet, custom, float32, not an instruct network"):
        read_instruct(tmp_path / "net.safetensors")
    save_file({"x.lora_down.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UnknownCheckpoint, match="this is a LoRA"):
        read_instruct(tmp_path / "lora.safetensors")
    with pytest.raises(FileNotFoundError):
        read_instruct(tmp_path / "none.safetensors")


@pytest.mark.parametrize("damage", ["no control", "no config", "other config", "no lora", "nan"])
def test_damaged_files(file: Path, damage: str) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    match damage:
        case "no control":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("controlnet.")}
        case "no lora":
            tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("controlnet.")}
        case "no config":
            del metadata["cascade.config"]
        case "other config":
            metadata["cascade.config"] = "[1]"
        case _:
            next(tensor for tensor in tensors.values() if tensor.dim()).fill_(torch.nan)
    save_file(tensors, file, metadata)
    with pytest.raises(CheckpointError) as caught:
        read_instruct(file)
    assert str(file) in str(caught.value)
    if damage in ("no config", "other config", "nan"):
        assert isinstance(caught.value, BrokenCheckpoint)
