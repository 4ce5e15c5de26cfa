"""Reading and checking the header of a safetensors file.

The format: the header's length (8 bytes, little-endian), the header as JSON (name -> dtype, shape, data_offsets;
`__metadata__`), then the tensors without gaps. Reading needs memory for the header only, whatever sizes it claims.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import BrokenCheckpoint, shown
from ..files import open_regular

MAX_HEADER = 5_000_000
"""Bytes of a header, an index or a config. A checkpoint of 5,000 tensors has 1 MB; small entries take 50 times their
bytes when they are read, and 100 MB, the limit of the safetensors library, take a minute and gigabytes."""
MAX_TENSORS = 20_000
"""Tensors of a file; a checkpoint with all networks has 5,000. Each is compared with the names of many formats."""
MAX_NAME = 1000
"""Characters of a tensor's name."""
MAX_DIMENSIONS = 8
ALIGNMENT = 64
"""Bytes, of a cache line and of the widest registers: at multiples of it tensors begin in the files that we write."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """The tensors, in the order of their bytes in the file, and the metadata."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        BrokenCheckpoint: the header is damaged or does not match the file's size.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise BrokenCheckpoint(f"truncated: its header should be {length:,} bytes, the file has {size:,}", path)
        if length > MAX_HEADER:
            raise BrokenCheckpoint(
                f"its header claims {length:,} bytes; more than {MAX_HEADER:,} cannot be right", path
            )
        raw = file.read(length)
    try:
        header = _parsed(json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates))
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"its header is damaged: {error}", path) from error
    promised, held = sum(info.bytes for info in header.tensors.values()), size - 8 - length
    if promised > held:
        raise BrokenCheckpoint(
            f"truncated: its header promises {promised:,} bytes of tensors, the file has {held:,}", path
        )
    if promised < held:
        raise BrokenCheckpoint(f"{held - promised:,} bytes at its end belong to no tensor", path)
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("it names something twice")
    return content


def _parsed(content: Any) -> Header:
    if not isinstance(content, dict):
        raise ValueError("it is not a table of tensors")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not a table of strings")
    if len(content) > MAX_TENSORS:
        raise ValueError(f"it names {len(content):,} tensors; more than {MAX_TENSORS:,} cannot be right")
    entries = sorted((_entry(name, value) for name, value in content.items()), key=lambda entry: entry[1:3])
    position = 0
    for name, begin, end, _ in entries:
        if begin != position:
            raise ValueError(f"{name} begins at byte {begin:,} instead of {position:,}")
        position = end
    return Header({name: info for name, _, _, info in entries}, metadata)


def _entry(name: str, value: Any) -> tuple[str, int, int, TensorInfo]:
    name.encode("utf-8")  # JSON allows half surrogates, which cannot be printed
    if len(name) > MAX_NAME:
        raise ValueError(f"a tensor's name has {len(name):,} characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} lacks its dtype, shape or data_offsets")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        stored = dtype if isinstance(dtype, str) else shown(dtype)
        raise ValueError(f"{name} is stored as {stored[:40]}, which is not supported")
    shape, offsets = _sizes(name, value["shape"]), _sizes(name, value["data_offsets"])
    if len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name} has an invalid shape or invalid offsets")
    info = TensorInfo(shape, DTYPES[dtype])
    if offsets[1] - offsets[0] != info.bytes:
        raise ValueError(
            f"{name} claims {offsets[1] - offsets[0]:,} bytes, its shape {list(shape)} makes {info.bytes:,}"
        )
    return name, *offsets, info


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise ValueError(f"{name} has a shape or offsets that are not whole numbers from 0")
    return tuple(value)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a small JSON file beside a network: an index of shards or a config.

    Raises:
        BrokenCheckpoint: it is damaged, too large, no JSON object, or has NaN or infinity in it.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_HEADER + 1)
        if len(raw) > MAX_HEADER:
            raise BrokenCheckpoint(f"too large for a JSON file of this kind: more than {MAX_HEADER:,} bytes", path)
        content = parsed_json(raw.decode("utf-8"))
    except OSError as error:
        raise BrokenCheckpoint(f"this cannot be read: {error.strerror}", path) from error
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"not readable as JSON: {error}", path) from error
    if not isinstance(content, dict):
        raise BrokenCheckpoint("not a JSON object", path)
    return content


def parsed_json(text: str) -> Any:
    """JSON by its standard: Python also takes NaN and infinity. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def header_bytes(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file with these tensors in this order, the first at a multiple of `ALIGNMENT`."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, info in tensors.items():
        offsets = [position, position + info.bytes]
        content[name] = {"dtype": DTYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
        position = offsets[1]
    raw = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw


def what_it_is(path: str | os.PathLike[str]) -> str:
    """The kind of a file by its first bytes: safetensors, zip, pickle, or a description of what else it is."""
    with open_regular(Path(path)) as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file"
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "pickle"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, not a checkpoint: the download got a page instead of the file"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch it with git lfs pull"
    if start.startswith(b"GGUF"):
        return "a GGUF file, a format that is not supported"
    if not any(start):
        return "nothing but zeros: the download did not finish"
    return "not a checkpoint of a supported format"
