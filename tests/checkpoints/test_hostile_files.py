"""Files made to harm: small files that ask for gigabytes, programs in pickles, and things that are no files."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.adapters import read_lora
from cascade.checkpoints import config_of, convert, inspect_file, load_model
from cascade.checkpoints.header import MAX_HEADER
from cascade.checkpoints.saving import foreign_config
from cascade.errors import BrokenCheckpoint, CascadeError, CheckpointError, IncompatibleCheckpoint, UnsafeCheckpoint
from tests.checkpoints.files import CONFIGS, network, raw_file, released_state, same_weights, save

ROOT = Path(__file__).resolve().parents[2]
LIMITED = """
import resource, sys
from cascade.adapters import read_lora
from cascade.checkpoints import load_model
from cascade.errors import CascadeError
resource.setrlimit(resource.RLIMIT_AS, (4_000_000_000,) * 2)
for read in (load_model, read_lora):
    try:
        read(sys.argv[1])
    except CascadeError as error:
        print(error)
"""


def with_little_memory(path: Path) -> list[str]:
    """The errors of reading a file in a process that may take 4 GB of addresses, two of which torch takes."""
    if sys.platform != "linux":
        pytest.skip("limits the memory of a process")
    command = [sys.executable, "-c", LIMITED, str(path)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True)
    return result.stdout.splitlines()


EXPANDED: dict[str, Callable[[], Tensor]] = {
    "zero": lambda: torch.zeros(1).expand(1_850_000_000),
    "embedding": lambda: torch.zeros(1, 1280).expand(1_500_000, 1280),
    "overlapping": lambda: torch.as_strided(torch.zeros(1000), (900, 100), (1, 1)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", EXPANDED)
def test_a_tensor_has_no_more_values_than_the_file(kind: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "embedding.pt"
    torch.save({"clip_g": EXPANDED[kind]()}, path, _use_new_zipfile_serialization=zipped)
    for read in (load_model, read_lora):
        with pytest.raises(BrokenCheckpoint, match="a tensor has more values than its storage"):
            read(path)


def test_one_storage_under_many_names_counts_each_time(tmp_path: Path) -> None:
    tensor = torch.zeros(100_000)
    torch.save({f"{number}": tensor for number in range(100)}, tmp_path / "file.pt")
    with pytest.raises(BrokenCheckpoint, match="claim more values than the file has"):
        load_model(tmp_path / "file.pt")
    torch.save({"a": tensor, "b": tensor}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="no part of Stable Cascade"):
        load_model(tmp_path / "file.pt")


def test_thirty_bytes_do_not_allocate_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.")
    assert path.stat().st_size <= 33
    with pytest.raises(UnsafeCheckpoint, match=r"it calls builtins\.bytearray"):
        load_model(path)
    assert len(with_little_memory(path)) == 2


PROGRAMS = {
    "a long text": b"X\xff\xff\xff\xff" + b"abc.",
    "a long text of bytes": b"\x8e" + b"\xff" * 7 + b"\x00" + b"abc.",
    "a place far away": b"Nr\xff\xff\xff\xff.",
    "a large storage": (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\x7ftQ."
    ),
    "a name that doubles": b"K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}h\x00h\x00s.",
    "a value that doubles": b"K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}X\x01\x00\x00\x00ah\x00s.",
    "marks": b"(" * 100_000 + b".",
    "tuples in tuples": b")" + b"\x85" * 100_000 + b".",
    "too many steps": b"N0" * 1_500_000 + b"}.",
    "a list that is called": b"]]R.",
    "itself": b"}q\x00X\x01\x00\x00\x00ah\x00s.",
}


@pytest.mark.parametrize("case", PROGRAMS)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_ask_for_time_and_memory(case: str, zipped: bool, tmp_path: Path) -> None:
    path, program = tmp_path / "file.pt", b"\x80\x02" + PROGRAMS[case]
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
    else:
        path.write_bytes(program)
    with pytest.raises(BrokenCheckpoint):
        load_model(path)


def test_archives_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(released_state("previewer"), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
        archive.writestr("archive/data/zeros", bytes(100_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(BrokenCheckpoint, match="its archive is compressed"):
        load_model(path)


def test_entries_of_an_archive_that_lie_on_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(100_000))
        first = archive.getinfo("archive/data/0")
        for number in range(1, 100):
            other = zipfile.ZipInfo(f"archive/data/{number}")
            other.header_offset, other.file_size, other.compress_size, other.CRC = (
                first.header_offset, first.file_size, first.compress_size, first.CRC,
            )  # fmt: skip
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    with pytest.raises(BrokenCheckpoint, match="claims more than the file has"):
        load_model(path)


def test_a_list_of_an_archive_that_points_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    data = bytearray(path.read_bytes())
    data[-6:-2] = (int.from_bytes(data[-6:-2], "little") + 100).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(BrokenCheckpoint, match="a damaged or truncated pickle"):
        load_model(path)


def stored_in(dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: torch.ones(2, 2).to(dtype)


VARIANTS: dict[str, Callable[[], Tensor]] = {
    "meta": lambda: torch.empty(10**9, 10**3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "complex64": stored_in(torch.complex64),
    "float8_e4m3fnuz": stored_in(torch.float8_e4m3fnuz),
    "uint16": stored_in(torch.uint16),
}


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_in_a_pickle_and_in_memory(kind: str, tmp_path: Path) -> None:
    state = released_state("previewer") | {"blocks.0.weight": VARIANTS[kind]()}
    path = tmp_path / "file.pt"
    torch.save(state, path)
    for source in (path, state):
        for read in (load_model, inspect_file, read_lora):
            with pytest.raises(CheckpointError):
                read(source)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_what_torch_writes_is_read(zipped: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """Parameters, views with gaps and another order, and types that fit no even place."""
    state = {
        name: tensor.to(dtype) if tensor.dim() > 1 else tensor for name, tensor in released_state("stage_a").items()
    }
    wide = torch.nn.Parameter(state["in_block.1.weight"].repeat(1, 1, 1, 2)[..., ::2], requires_grad=False)
    turned = state["out_block.0.weight"].movedim(0, 1).contiguous().movedim(1, 0)
    written = state | {"in_block.1.weight": wide, "out_block.0.weight": turned}
    torch.save(written, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    assert same_weights(load_model(tmp_path / "file.pt"), load_model(state))


def test_writing_to_a_tensor_of_a_pickle_does_not_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(released_state("previewer"), path)
    before = path.read_bytes()
    for parameter in load_model(path).parameters():
        parameter.data.zero_()
    assert path.read_bytes() == before


class Attack:
    def __reduce__(self) -> Any:
        return eval, ("1",)


def test_no_error_advises_to_load_with_code(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    contents = [pickle.dumps(Attack(), protocol=2), b"\x80\x02}q\x00(X", b"\x80\x02cos\nsystem\n.", b"\x80\x02)R."]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        shown = "".join(traceback.format_exception(caught.value))
        assert "weights_only" not in shown
        assert "safe_globals" not in shown


def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with path.open("wb") as file:
        file.write((99_999_999).to_bytes(8, "little") + b'{"a":')
        file.truncate(100_000_100)
    with pytest.raises(BrokenCheckpoint, match="more than 5,000,000 cannot be right"):
        load_model(path)
    assert all("cannot be right" in line for line in with_little_memory(path))


def test_a_header_of_too_many_tensors(tmp_path: Path) -> None:
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    path = raw_file(tmp_path / "file.safetensors", {f"{number}": empty for number in range(30_000)})
    assert path.stat().st_size < MAX_HEADER
    with pytest.raises(BrokenCheckpoint, match="30,000 tensors; more than"):
        load_model(path)


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 2), (5, 1), (1, 4, 2)])
def test_factors_of_a_wrong_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    state = released_state("previewer")
    name = "blocks.0.weight"
    state[name] = state[name].to(torch.float8_e4m3fn)
    path = save(tmp_path / "file.safetensors", state | {"blocks.0.scale_weight": torch.ones(shape)})
    for use in (load_model, lambda path: convert(path, tmp_path / "to.safetensors")):
        with pytest.raises(IncompatibleCheckpoint, match=r"factors of a wrong shape: blocks\.0\.scale_weight"):
            use(path)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1), (1, 1, 1, 1, 1)])
def test_one_factor_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Also for a vector, which must not get more dimensions by it."""
    state = released_state("previewer")
    names = [name for name in state if name.endswith(".weight")]
    assert {state[name].dim() for name in names} >= {1, 4}
    factors = {name.removesuffix("weight") + "scale_weight": torch.full(shape, 2.0) for name in names}
    path = save(tmp_path / "file.safetensors", state | factors)
    scaled = {name: tensor * 2 if name in names else tensor for name, tensor in state.items()}
    assert same_weights(load_model(path), load_model(scaled))


def described(kind: str, path: Path, config: str) -> Path:
    metadata = {"cascade.kind": kind, "cascade.config": config}
    from safetensors.torch import save_file

    save_file({name: t.clone().contiguous() for name, t in released_state(kind).items()}, path, metadata=metadata)
    return path


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("text_encoder", {"num_attention_heads": 2**63}),
    ("text_encoder", {"num_attention_heads": 5}),
    ("text_encoder", {"layer_norm_eps": 2**63}),
    ("text_encoder", {"layer_norm_eps": 0}),
    ("text_encoder", {"hidden_act": "no such thing"}),
    ("text_encoder", {"num_hidden_layers": -1}),
    ("image_encoder", {"patch_size": 0}),
    ("image_encoder", {"image_size": 10**9}),
    ("image_encoder", {"num_channels": True}),
    ("controlnet", {"width": 7.5}),
    ("controlnet", {"in_channels": 3.0}),
    ("controlnet", {"blocks": [0.5, 4, 8, 12, 51, 55, 59, 63]}),
    ("controlnet", {"blocks": [0, 4, 8, 12, 51, 55, 59, 2**31 - 1]}),
    ("controlnet", {"blocks": []}),
    ("controlnet", {"depth": 1.5, "backbone": "large"}),
    ("controlnet", {"backbone": ["effnet"]}),
    ("stage_a", {"scale_factor": 0}),
    ("stage_a", {"scale_factor": "0.5"}),
    ("stage_a", {"bottleneck_blocks": 10**12}),
    ("stage_c", {"levels": [{"width": 64, "heads": 1, "depth": 10**7}, {"width": 64, "heads": 1, "depth": -(10**7)}]}),
    ("stage_c", {"levels": [{"width": 64, "heads": 1, "depth": 1.5}] * 2}),
    ("stage_c", {"levels": [5, 6]}),
    ("stage_c", {"switch_level": [2]}),
]


@pytest.mark.parametrize(("kind", "change"), WRONG)
def test_metadata_of_a_network_that_cannot_be(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(network(kind)).to_dict() | change
    path = described(kind, tmp_path / "file.safetensors", json.dumps(config))
    with pytest.raises(CheckpointError):
        load_model(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_numbers_in_configs_that_are_none(number: str, tmp_path: Path) -> None:
    config = json.dumps(CONFIGS["stage_a"].to_dict() | {"scale_factor": 12345}).replace("12345", number)
    with pytest.raises(BrokenCheckpoint, match="does not describe a Stage A"):
        load_model(described("stage_a", tmp_path / "file.safetensors", config))
    folder = tmp_path / "vqgan"
    folder.mkdir()
    save(folder / "model.safetensors", released_state("stage_a"))
    text = json.dumps(foreign_config("stage_a", CONFIGS["stage_a"]) | {"scale_factor": 12345}).replace("12345", number)
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_folders_where_files_are_meant(tmp_path: Path) -> None:
    folder = tmp_path / "prior"
    (folder / "config.json").mkdir(parents=True)
    save(folder / "model.safetensors", released_state("previewer"))
    with pytest.raises(BrokenCheckpoint, match=r"config\.json: this cannot be read"):
        load_model(folder)
    (folder / "config.json").rmdir()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors: this cannot be read"):
        load_model(folder)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "prior"}}', encoding="utf-8")
    with pytest.raises(BrokenCheckpoint, match="the shard prior is missing"):
        load_model(index)
    index.unlink()
    index.mkdir()
    with pytest.raises(CheckpointError):
        load_model(index)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices")
@pytest.mark.parametrize("name", ["file.safetensors", "file.pt", "model.safetensors.index.json", "adapter_config.json"])
def test_pipes_and_devices_are_refused(name: str, tmp_path: Path) -> None:
    given = path = tmp_path / name
    if name.startswith("adapter"):
        given = save(tmp_path / "adapter_model.safetensors", {
            "prior.embedding.1.lora_A.weight": torch.ones(1, 4), "prior.embedding.1.lora_B.weight": torch.ones(4, 1)
        })  # fmt: skip
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(path)
        for read in (load_model, inspect_file, read_lora)[2 if given != path else 0 :]:
            with pytest.raises(BrokenCheckpoint, match="a pipe or a device, not a file"):
                read(given)
        path.unlink()


def test_a_network_of_absurdly_many_blocks_is_not_built(tmp_path: Path) -> None:
    state = {f"down_blocks.0.{number}.channelwise.4.weight": torch.zeros(4, 1) for number in range(10_000)}
    for name, shape in {
        "clip_txt_mapper": (1, 1), "clf.1": (1,), "clip_txt_pooled_mapper": (4, 1), "clip_img_mapper": (4, 1),
        "embedding.1": (1, 16),
    }.items():  # fmt: skip
        state[f"{name}.weight"] = torch.zeros(shape)
    with pytest.raises(IncompatibleCheckpoint, match="blocks; more than 2,000 cannot be right"):
        load_model(save(tmp_path / "file.safetensors", state))


def test_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x" * 300}}), encoding="utf-8")
    with pytest.raises(BrokenCheckpoint, match="a file in another folder"):
        load_model(index)
    for read in (load_model, read_lora):
        with pytest.raises((CheckpointError, FileNotFoundError)):
            read(tmp_path / ("x" * 300))


def test_texts_of_errors_are_cut() -> None:
    name = "x" * 10**6
    with pytest.raises(CheckpointError) as caught:
        load_model({name: torch.zeros(1)})
    assert len(str(caught.value)) <= 1000
    assert len(str(CascadeError(name))) == 1000
    assert str(CascadeError("a\x1b[31m\u2028b")) == "a\\x1b[31m\\u2028b"
