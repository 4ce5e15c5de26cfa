"""Reading tensors from a file, a folder of shards, a folder of diffusers, a pickle or a state dict.

A `TensorSource` has the names, shapes and types of all tensors; values are read on request.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BrokenCheckpoint, UnknownCheckpoint, UnsafeCheckpoint
from .header import TensorInfo, read_header, what_it_is

Get = Callable[[str], Tensor]

PIPELINE_FOLDERS = ("prior", "decoder", "vqgan", "text_encoder", "image_encoder")
"""The folders of networks in a pipeline folder of diffusers."""
_DAMAGES = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    MemoryError,
    struct.error,
    OSError,
)
"""What torch raises for a truncated or damaged pickle."""
MAX_INDEX = 50_000_000
"""Bytes that a shard index or a config may have at most."""


@dataclass(frozen=True)
class TensorSource:
    """Named tensors that can be read.

    Attributes:
        path: the file or folder; None for a state dict.
        tensors: name -> shape and type.
        files: name -> file; empty if `held` has the tensors.
        held: tensors in memory: those of a state dict or a pickle (mapped from its file if the format allows it).
        metadata: of the safetensors file.
        config: config.json of a diffusers folder.
    """

    path: Path | None
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, Path] = field(default_factory=dict)
    held: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None

    @contextmanager
    def reader(self) -> Iterator[Get]:
        """A function that returns a tensor by its name, on the CPU.

        Tensors of a safetensors file are mapped privately: values are read on first use and not copied, and writing to
        them (training) changes memory, never the file.
        """
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}

            def get(name: str) -> Tensor:
                if name in self.held:
                    return self.held[name]
                path = self.files[name]
                try:
                    if path not in opened:
                        opened[path] = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
                    return opened[path].get_tensor(name)
                except (SafetensorError, RuntimeError, ValueError) as error:
                    raise BrokenCheckpoint(f"{name} cannot be read: {error}", path) from error

            yield get


def open_tensors(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> dict[str, TensorSource]:
    """The tensors of a path or a state dict: one source under "", or one for each network of a pipeline folder.

    Raises:
        FileNotFoundError: the path does not exist.
        BrokenCheckpoint, UnsafeCheckpoint, UnknownCheckpoint: as these classes say.
    """
    if isinstance(source, Mapping):
        return {"": _from_state_dict(source, None)}
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(2, "there is no such file or folder", str(path))
    if not path.is_dir():
        return {"": _from_index(path) if path.suffix == ".json" else _from_file(path)}
    if (path / "model_index.json").exists():
        return {name: _from_folder(path / name) for name in PIPELINE_FOLDERS if (path / name).is_dir()}
    return {"": _from_folder(path)}


def _from_state_dict(state: Mapping[Any, Any], path: Path | None) -> TensorSource:
    nested = state.get("state_dict")
    state = nested if isinstance(nested, Mapping) else state
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            found = f"{str(name)[:80]!r} is a {type(value).__name__}"
            raise BrokenCheckpoint(f"not a table of tensors: {found}", path)
    infos = {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in state.items()}
    return TensorSource(path, infos, held={name: value.detach() for name, value in state.items()})


def _from_file(path: Path) -> TensorSource:
    kind = what_it_is(path)
    if kind == "safetensors":
        header = read_header(path)
        return TensorSource(path, header.tensors, files=dict.fromkeys(header.tensors, path), metadata=header.metadata)
    if kind in ("zip", "pickle"):
        return _from_state_dict(_unpickled(path, mmap=kind == "zip"), path)
    raise BrokenCheckpoint(f"this is {kind}", path)


def _unpickled(path: Path, mmap: bool) -> Mapping[Any, Any]:
    """The content of a file of torch.save, read by torch's reader for weights only, which runs no code."""
    try:
        with warnings.catch_warnings():
            # About pickles that another program than torch wrote; errors are raised below.
            warnings.simplefilter("ignore", UserWarning)
            if path.suffix == ".safetensors":
                # By this name torch would read it as safetensors. A file object hides the name, but cannot be mapped.
                with path.open("rb") as file:
                    content = torch.load(file, map_location="cpu", weights_only=True)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # The error's own text suggests to load it without weights_only: users should not see that.
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        called = called[1] if called else _first_global(path)
        if called:
            message = f"a pickle that contains code, which was not run: it calls {called}"
            raise UnsafeCheckpoint(message, path) from error
        raise BrokenCheckpoint("a damaged or truncated pickle", path) from error
    except _DAMAGES as error:
        raise BrokenCheckpoint("a damaged or truncated pickle", path) from error
    if not isinstance(content, Mapping):
        raise BrokenCheckpoint(f"a pickle of a {type(content).__name__}, not of a table of tensors", path)
    return content


def _first_global(path: Path) -> str | None:
    """The first function or class that a plain pickle refers to; None if there is none or it is not a plain pickle."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(MAX_INDEX))
    texts: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(start):
            if code.name in ("GLOBAL", "INST"):
                return str(argument).replace(" ", ".")
            if code.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            texts += [argument] if isinstance(argument, str) else []
    except (ValueError, IndexError, OverflowError, UnicodeDecodeError):
        return None
    return None


def _from_folder(path: Path) -> TensorSource:
    """The weights in a folder: a safetensors file, else shards by their index, else a pickle. Of several variants of a
    file (model.fp16.safetensors) the shortest name counts."""
    config = _read_json(path / "config.json") if (path / "config.json").exists() else None
    for pattern, read in (
        ("*.safetensors", _from_file),
        ("*.safetensors.index*.json", _from_index),
        ("*.bin", _from_file),
        ("*.pt", _from_file),
    ):
        files = [file for file in path.glob(pattern) if "-of-" not in file.name]
        names = sorted((file.name for file in files), key=lambda name: (len(name), name))
        stems = {name.split(".")[0] for name in names}
        if len(stems) > 1:
            raise UnknownCheckpoint(f"several files ({', '.join(names[:5])}): give the path of one of them", path)
        if names:
            found = read(path / names[0])
            return TensorSource(path, found.tensors, found.files, found.held, found.metadata, config)
    raise UnknownCheckpoint("a folder without weights (.safetensors, an index of shards, .bin or .pt)", path)


def _from_index(path: Path) -> TensorSource:
    """The shards of an index.json, which must be in the same folder."""
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BrokenCheckpoint("an index of shards without a weight_map", path)
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    held: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise BrokenCheckpoint(f"an index of shards with a file in another folder: {name[:200]!r}", path)
        shard = path.parent / name
        if not shard.exists():
            raise BrokenCheckpoint(f"the shard {name} is missing", path)
        found = _from_file(shard)
        held |= found.held
        for tensor, info in found.tensors.items():
            if tensor in tensors:
                raise BrokenCheckpoint(f"{tensor} is in {files[tensor].name} and in {name}", path)
            tensors[tensor], files[tensor] = info, shard
    if missing := [tensor for tensor in weight_map if tensor not in tensors]:
        raise BrokenCheckpoint(f"{len(missing)} tensors are in no shard, among them {', '.join(missing[:3])}", path)
    return TensorSource(path, tensors, files, held)


def _read_json(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > MAX_INDEX:
        raise BrokenCheckpoint(f"too large for a JSON file of this kind: more than {MAX_INDEX:,} bytes", path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"not readable as JSON: {str(error)[:200]}", path) from error
    if not isinstance(content, dict):
        raise BrokenCheckpoint("not a JSON object", path)
    return content
