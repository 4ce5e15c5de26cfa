from __future__ import annotations

import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cascade.checkpoints import inspect_file, load_model, save_model
from cascade.checkpoints.saving import save_tensors
from cascade.errors import BrokenCheckpoint, CheckpointError, IncompatibleCheckpoint, UnsafeCheckpoint
from tests.checkpoints.files import (
    CONFIGS,
    network,
    outputs,
    raw_file,
    released_state,
    same_outputs,
    same_weights,
    save,
)


def test_types(tmp_path: Path) -> None:
    path = save(tmp_path / "file.safetensors", released_state("effnet"))
    net = load_model(path, dtype=torch.float16)
    floating = {tensor.dtype for tensor in net.state_dict().values() if tensor.is_floating_point()}
    assert floating == {torch.float16}
    # A count is a count, whatever the weights are.
    assert net.state_dict()["mapper.1.num_batches_tracked"].dtype == torch.int64
    state = {name: tensor.half() for name, tensor in released_state("effnet").items()}
    assert load_model(state).state_dict()["mapper.1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_calculated_in_a_type_that_can(stored: torch.dtype, tmp_path: Path) -> None:
    state = {
        name: tensor.to(stored) if tensor.dim() > 1 else tensor for name, tensor in released_state("stage_c").items()
    }
    path = save(tmp_path / "file.safetensors", state)
    assert inspect_file(path).dtype.startswith(str(stored).removeprefix("torch."))
    net = load_model(path)
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}
    expected = load_model({name: tensor.float() for name, tensor in state.items()})
    assert same_weights(net, expected)
    assert same_outputs("stage_c", net, expected)
    only = {name: tensor.to(stored) for name, tensor in state.items()}
    assert next(load_model(only).parameters()).dtype == torch.bfloat16
    kept = load_model(path, dtype=stored).state_dict()
    assert kept["clip_txt_mapper.weight"].dtype == stored
    assert kept["clip_txt_mapper.bias"].dtype == torch.float32


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
def test_float8_with_factors(ending: str, tmp_path: Path) -> None:
    state = dict(network("stage_c").state_dict())
    weight = state["clip_txt_mapper.weight"]
    per_row = weight.abs().amax(dim=1) / 400
    state["clip_txt_mapper.weight"] = (weight / per_row[:, None]).to(torch.float8_e4m3fn)
    state[f"clip_txt_mapper.{ending}"] = per_row
    state["clip_txt_mapper.scale_input"] = torch.ones(())
    state["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    net = load_model(save(tmp_path / "file.safetensors", state))
    loaded = net.state_dict()["clip_txt_mapper.weight"].float()
    assert ((loaded - weight).abs() <= weight.abs() / 15 + per_row[:, None] / 100).all()


def test_quantized_weights_are_refused() -> None:
    state = released_state("previewer")
    state["blocks.0.weight"] = state["blocks.0.weight"].to(torch.uint8)
    with pytest.raises(IncompatibleCheckpoint, match=r"quantized format.*blocks.0.weight is uint8"):
        load_model(state)


def test_missing_left_over_and_misshapen_names_are_listed() -> None:
    state = released_state("stage_a")
    gone = [name for name in state if ".gammas" in name]
    for name in gone[1:]:
        del state[name]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(7)}
    state["out_block.0.bias"] = torch.zeros(5)
    with pytest.raises(IncompatibleCheckpoint) as caught:
        load_model(state, config=CONFIGS["stage_a"])
    text = str(caught.value)
    assert "this is Stage A, custom" in text
    assert f"missing: {gone[1]}, {gone[2]}, {gone[3]}" in text
    assert "left over: extra.0, extra.1, extra.2, ... (7 in all)" in text
    assert "of another shape: out_block.0.bias [5] for [12]" in text


def test_config_wins() -> None:
    from tests.small import part

    net = part("stage_c")
    assert load_model(net.state_dict(), config=net.config).config == net.config
    assert load_model(net.state_dict(), config=net.config.to_dict()).config == net.config
    with pytest.raises(IncompatibleCheckpoint, match="do not fit"):
        load_model(net.state_dict(), config=CONFIGS["stage_c"])


class Noted(nn.Linear):
    """A layer of a host's factory."""


def test_layers_come_from_the_factory(tmp_path: Path) -> None:
    class Factory:
        Linear, Conv2d, ConvTranspose2d, LayerNorm = Noted, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm

    net = load_model(released_state("stage_c"), ops=Factory)
    assert any(isinstance(module, Noted) for module in net.modules())
    assert not any(type(module) is nn.Linear for module in net.modules())
    assert same_weights(net, network("stage_c"))
    assert same_outputs("stage_c", net, network("stage_c"))


def test_numbers_that_are_none_are_found_when_asked() -> None:
    state = {name: tensor.clone() for name, tensor in released_state("previewer").items()}
    state["blocks.3.weight"][0, 0, 0, 0] = float("nan")
    state["blocks.24.bias"][0] = float("inf")
    load_model(state)
    with pytest.raises(BrokenCheckpoint, match=r"NaN or infinity in: blocks.3.weight, blocks.24.bias$"):
        load_model(state, check_finite=True)
    load_model(released_state("previewer"), check_finite=True)


def test_training_does_not_reach_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "file.safetensors", released_state("stage_c"))
    before = path.read_bytes()
    net = load_model(path)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    out = net(*(torch.randn(s, generator=generator) for s in ((1, 16, 2, 2), (1,), (1, 3, 20), (1, 1, 12), (1, 1, 8))))
    out.square().sum().backward()
    optimizer.step()
    assert not same_weights(net, network("stage_c"))
    assert not same_outputs("stage_c", net, network("stage_c"))
    assert path.read_bytes() == before


def test_split_attention_is_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_model(network("stage_c"), path)
    attention = load_model(path).get_submodule("down_blocks.0.2.attention.attn")
    q, k, v = (getattr(attention, f"to_{matrix}").weight for matrix in "qkv")
    assert k.data_ptr() - q.data_ptr() == q.nbytes == v.data_ptr() - k.data_ptr()
    assert all(matrix.is_contiguous() and matrix.requires_grad for matrix in (q, k, v))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process in Linux's way")
def test_memory_is_the_files(tmp_path: Path) -> None:
    """A file of 200 MB, every number read: the resident set grows by little more."""
    from cascade.models import Level, StageCConfig

    width = 1024
    config = StageCConfig(condition_channels=width, levels=(Level(width, 16, 3), Level(width, 16, 3)))
    from cascade.checkpoints.network_kinds import empty_network
    from tests.checkpoints.files import hollow_file

    shapes = {name: list(tensor.shape) for name, tensor in empty_network("stage_c", config).state_dict().items()}
    path = hollow_file(tmp_path / "file.safetensors", shapes)
    size = path.stat().st_size
    assert size > 150_000_000
    program = (
        "import re, sys\nfrom pathlib import Path\nfrom cascade.checkpoints import load_model\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "before = peak()\nnet = load_model(sys.argv[1])\n"
        "total = sum(float(p.detach().view(-1)[::512].float().sum()) for p in net.parameters())\n"
        "print(peak() - before)\n"
    )
    root = Path(__file__).resolve().parent.parent.parent
    command = [os.sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    # 40 MB of modules and of what a first import brings.
    assert int(result.stdout) < 1.15 * size + 40_000_000


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "short": (b"\x10\x00", "not a checkpoint"),
    "page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "page after a mark": (b"\xef\xbb\xbf\n <html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "zeros": (bytes(4096), "nothing but zeros"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(40), "a GGUF file"),
    "text": (b"Access denied. Please accept the license first.", "not a checkpoint"),
    "zip": (b"PK\x03\x04" + bytes(60), "a damaged or truncated pickle"),
    "pickle": (b"\x80\x02}q\x00(X", "a damaged or truncated pickle"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_checkpoint_is_said(case: str, tmp_path: Path) -> None:
    content, text = BROKEN[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for look in (load_model, inspect_file):
        with pytest.raises(BrokenCheckpoint, match=text) as caught:
            look(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES: dict[str, tuple[Any, int, str]] = {
    "bytes past the end": (
        {"a": entry(0, 8, [2])},
        4,
        "truncated: its header promises 8 bytes of tensors, the file has 4",
    ),
    "bytes of nobody": ({"a": entry(0, 8, [2])}, 12, "4 bytes at its end belong to no tensor"),
    "shape and offsets": ({"a": entry(0, 8, [3])}, 8, "claims 8 bytes, its shape"),
    "huge": ({"a": entry(0, 2**60, [2**58])}, 8, "truncated"),
    "huge product": ({"a": entry(0, 8, [2**62, 2**62, 2**62])}, 8, "claims 8 bytes"),
    "negative": ({"a": entry(8, 0, [-2])}, 8, "are not whole numbers from 0"),
    "overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "b begins at byte 4 instead of 8"),
    "gap": ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "b begins at byte 12 instead of 8"),
    "type": ({"a": entry(0, 8, [2], "F4")}, 8, "stored as F4"),
    "no table": ([1, 2], 0, "not a table of tensors|not a checkpoint"),
    "not JSON": (b"{" * 40, 0, "damaged"),
    "deep": (b"{" + b'"a":[' * 90_000, 0, "damaged"),
    "twice": (b'{"a":{},"a":{}}', 0, "names something twice"),
    "not text": (b'{"\xff":1}', 0, "damaged"),
    "half a character": (b'{"\\ud800":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', 4, "damaged"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "metadata is not a table of strings"),
    "float sizes": ({"a": entry(0, 8, [2.0])}, 8, "are not whole numbers from 0"),  # type: ignore[list-item]
    "name": ({"a" * 5000: entry(0, 8, [2])}, 8, "5,000 characters"),
}


@pytest.mark.parametrize("case", LIES)
def test_headers_that_lie(case: str, tmp_path: Path) -> None:
    header, size, text = LIES[case]
    path = raw_file(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(BrokenCheckpoint, match=text):
        load_model(path)


def test_truncated_files(tmp_path: Path) -> None:
    path = save(tmp_path / "file.safetensors", released_state("previewer"))
    whole = path.read_bytes()
    for size in (1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BrokenCheckpoint):
            load_model(path)
    torch.save(released_state("previewer"), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BrokenCheckpoint, match="a damaged or truncated pickle"):
        load_model(path)


class Attack:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_pickles_that_want_to_run_code_do_not(nested: bool, old: bool, tmp_path: Path) -> None:
    harmed, path = tmp_path / "harmed", tmp_path / "model.ckpt"
    content: Any = Attack(str(harmed))
    if nested:
        content = {"state_dict": released_state("previewer"), "callbacks": content}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    for look in (load_model, inspect_file):
        with pytest.raises(
            UnsafeCheckpoint, match=f"contains code, which was not run: it calls {os.system.__module__}.system"
        ):
            look(path)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(UnsafeCheckpoint, match="it calls "):
            load_model(path)
    assert not harmed.exists()


def test_pickles_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(BrokenCheckpoint, match="a pickle of a list"):
        load_model(path)
    torch.save({"a": 5}, path)
    with pytest.raises(BrokenCheckpoint, match="'a' is a int"):
        load_model(path)


def test_metadata_that_describes_no_network(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for config in ("", "[]", "{}x", '{"width": "wide"}', '{"unknown": 1}', '{"bottleneck_blocks": 1000000000}'):
        path = tmp_path / "file.safetensors"
        metadata = {"cascade.kind": "stage_a", "cascade.config": config}
        save_file({name: t.clone() for name, t in released_state("stage_a").items()}, path, metadata=metadata)
        with pytest.raises(CheckpointError):
            load_model(path)


def test_errors_are_one_line_whatever_they_tell_of(tmp_path: Path) -> None:
    path, state = tmp_path / "file.safetensors", released_state("stage_a")
    config = json.dumps(CONFIGS["stage_a"].to_dict() | {"width": 2**31 - 1})
    save_tensors(state, path, {"cascade.kind": "stage_a", "cascade.config": config})
    with pytest.raises(IncompatibleCheckpoint, match="its config is not valid") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(IncompatibleCheckpoint, match="left over: a line") as caught:
        load_model(state | {"a\nline": torch.zeros(1)}, config=CONFIGS["stage_a"])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nothing.safetensors")


def test_outputs_differ_between_networks() -> None:
    """The comparison that these tests rest on can fail."""
    other = load_model({name: tensor + 0.01 for name, tensor in released_state("stage_a").items()})
    assert not same_outputs("stage_a", other, network("stage_a"))
    assert all(torch.isfinite(tensor).all() for kind in CONFIGS for tensor in outputs(kind, network(kind)))
