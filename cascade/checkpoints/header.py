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

from ..errors import BrokenCheckpoint

MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""
MAX_NAME = 1000
"""Characters of a tensor's name."""
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
    size = path.stat().st_size
    with path.open("rb") as file:
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
        raise BrokenCheckpoint(f"its header is damaged: {_first_line(error)}", path) from error
    promised, held = sum(info.bytes for info in header.tensors.values()), size - 8 - length
    if promised > held:
        raise BrokenCheckpoint(
            f"truncated: its header promises {promised:,} bytes of tensors, the file has {held:,}", path
        )
    if promised < held:
        raise BrokenCheckpoint(f"{held - promised:,} bytes at its end belong to no tensor", path)
    return header


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


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
    if not isinstance(value["dtype"], str) or value["dtype"] not in DTYPES:
        raise ValueError(f"{name} is stored as {str(value['dtype'])[:40]}, which is not supported")
    shape, offsets = _sizes(name, value["shape"]), _sizes(name, value["data_offsets"])
    if len(offsets) != 2 or len(shape) > 8:
        raise ValueError(f"{name} has an invalid shape or invalid offsets")
    info = TensorInfo(shape, DTYPES[value["dtype"]])
    if offsets[1] - offsets[0] != info.bytes:
        raise ValueError(
            f"{name} claims {offsets[1] - offsets[0]:,} bytes, its shape {list(shape)} makes {info.bytes:,}"
        )
    return name, *offsets, info


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise ValueError(f"{name} has a shape or offsets that are not whole numbers from 0")
    return tuple(value)


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
    with Path(path).open("rb") as file:
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
