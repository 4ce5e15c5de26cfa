"""Quantized files: their layout is the host's, and they are read as what they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cascade.checkpoints import convert, inspect_file, load_model
from cascade.checkpoints.header import read_header
from cascade.checkpoints.quantizing import METADATA, QUANTIZATIONS, formats_of
from cascade.cli import main
from tests.checkpoints.files import network, outputs, released_state, save
from tests.support import relative_error

FORMATS = {"fp8_scaled": ("float8_e4m3fn", torch.float8_e4m3fn), "int8": ("int8_tensorwise", torch.int8)}


def quantized(folder: Path, kind: str, name: str, dtype: torch.dtype | None = None) -> Path:
    source, target = save(folder / "source.safetensors", released_state(kind)), folder / "target.safetensors"
    convert(source, target, quantize=name, dtype=dtype)
    return target


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_the_layout_is_the_hosts(kind: str, name: str, tmp_path: Path) -> None:
    header = read_header(quantized(tmp_path, kind, name))
    format_name, dtype = FORMATS[name]
    layers = json.loads(header.metadata[METADATA])["layers"]
    assert layers == {layer: {"format": format_name} for layer in layers}
    stored = {each.removesuffix(".weight") for each, info in header.tensors.items() if info.dtype == dtype}
    assert stored == set(layers)
    assert any(".attention.attn.to_q" in layer for layer in layers)
    assert {header.tensors[f"{layer}.weight_scale"].shape for layer in layers} == {()}
    # What reads values without a norm keeps its type.
    assert not any(".depthwise" in layer or ".mapper" in layer or "repeat" in layer for layer in layers)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_it_is_read_as_what_it_stands_for(kind: str, name: str, tmp_path: Path) -> None:
    path = quantized(tmp_path, kind, name)
    net, original = load_model(path), network(kind)
    layers = formats_of(read_header(path).metadata)
    for key, tensor in original.state_dict().items():
        found = net.state_dict()[key]
        assert found.dtype == torch.float32
        if key.removesuffix(".weight") not in layers:
            assert torch.equal(found, tensor)
            continue
        largest = tensor.abs().max()
        # Half a step: of 127 even ones, or the sixteenth part of a number.
        bound = largest / 254 if name == "int8" else tensor.abs() / 16 + largest / 448 / 512
        assert ((found - tensor).abs() <= bound * 1.01).all()
    assert relative_error(outputs(kind, net)[0], outputs(kind, original)[0]) < (0.3 if name == "fp8_scaled" else 0.1)


def test_the_other_tensors_have_the_type_that_was_asked_for(tmp_path: Path) -> None:
    path = quantized(tmp_path, "stage_c", "int8", torch.bfloat16)
    assert {info.dtype for info in read_header(path).tensors.values()} == {torch.int8, torch.bfloat16, torch.float32}
    assert {tensor.dtype for tensor in load_model(path).state_dict().values()} == {torch.bfloat16}
    assert inspect_file(path).kind == "stage_c"


def test_a_quantized_file_is_converted_back(tmp_path: Path) -> None:
    path, back = quantized(tmp_path, "stage_c", "fp8_scaled"), tmp_path / "back.safetensors"
    convert(path, back)
    state, expected = load_model(back).state_dict(), load_model(path).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert METADATA not in read_header(back).metadata


def test_layers_of_zeros(tmp_path: Path) -> None:
    state = released_state("stage_c")
    name = next(each for each in state if ".channelwise.0.weight" in each)
    state[name] = torch.zeros_like(state[name])
    source, target = save(tmp_path / "source.safetensors", state), tmp_path / "target.safetensors"
    for quantization in QUANTIZATIONS:
        convert(source, target, quantize=quantization)
        assert not load_model(target).state_dict()[name].any()


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", "{}", '{"layers": 3}', '{"layers": {"a": []}}', '{"layers": {"a": {}}}']
)
def test_metadata_of_another_form_count_as_none(text: str) -> None:
    assert formats_of({METADATA: text}) == {}


@pytest.mark.parametrize(("kind", "layout"), [("stage_a", "cascade"), ("stage_c", "diffusers")])
def test_what_cannot_be_quantized_is_said(
    kind: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(save(tmp_path / "source.safetensors", released_state(kind)))
    assert main(["convert", source, str(tmp_path / "t"), "--layout", layout, "--quantize", "int8"]) == 1
    assert "only a Stage C or Stage B in the layout cascade can be quantized" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    source = str(save(tmp_path / "source.safetensors", released_state("stage_b")))
    target = tmp_path / "target.safetensors"
    assert main(["convert", source, str(target), "--quantize", "fp8_scaled", "--dtype", "bfloat16"]) == 0
    assert target.stat().st_size < Path(source).stat().st_size / 2
