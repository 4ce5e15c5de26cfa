"""Reading tensors from a file, a folder of shards, a folder of diffusers, a pickle or a state dict.

A `TensorSource` has the names, shapes and types of all tensors; values are read on request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BrokenCheckpoint, UnknownCheckpoint, printable, shown
from .header import DTYPE_NAMES, MAX_NAME, MAX_TENSORS, TensorInfo, read_header, read_json, what_it_is
from .pickles import TABLES, read_pickle

Get = Callable[[str], Tensor]

PIPELINE_FOLDERS = ("prior", "decoder", "vqgan", "text_encoder", "image_encoder")
"""The folders of networks in a pipeline folder of diffusers."""
MAX_FILE_NAME = 255
"""Characters, on every usual file system."""


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
    try:
        there = path.exists()
    except OSError as error:  # such as a name that is too long
        raise BrokenCheckpoint(f"this cannot be read: {error.strerror}", path) from error
    if not there:
        raise FileNotFoundError(2, "there is no such file or folder", str(path))
    if not path.is_dir():
        return {"": _from_index(path) if path.suffix == ".json" else _from_file(path)}
    if (path / "model_index.json").exists():
        return {name: _from_folder(path / name) for name in PIPELINE_FOLDERS if (path / name).is_dir()}
    return {"": _from_folder(path)}


def _from_state_dict(state: Mapping[Any, Any], path: Path | None) -> TensorSource:
    state = next((nested for name in TABLES if isinstance(nested := state.get(name), Mapping)), state)
    if len(state) > MAX_TENSORS:
        raise BrokenCheckpoint(f"it names {len(state):,} tensors; more than {MAX_TENSORS:,} cannot be right", path)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BrokenCheckpoint(f"not a table of tensors: {shown(name)} is a {type(value).__name__}", path)
        if len(name) > MAX_NAME or printable(name) != name:
            raise BrokenCheckpoint(f"it has a tensor of the name {shown(name)}", path)
        if value.layout != torch.strided or value.is_nested or value.is_meta or value.dtype not in DTYPE_NAMES:
            kind = "without values" if value.is_meta else "nested" if value.is_nested else str(value.dtype)
            raise BrokenCheckpoint(f"{shown(name)} is stored as {kind}, which is not supported", path)
    infos = {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in state.items()}
    return TensorSource(path, infos, held={name: value.detach() for name, value in state.items()})


def _from_file(path: Path) -> TensorSource:
    try:
        kind = what_it_is(path)
    except OSError as error:
        raise BrokenCheckpoint(f"this cannot be read: {error.strerror}", path) from error
    if kind == "safetensors":
        header = read_header(path)
        return TensorSource(path, header.tensors, files=dict.fromkeys(header.tensors, path), metadata=header.metadata)
    if kind in ("zip", "pickle"):
        return _from_state_dict(read_pickle(path), path)
    raise BrokenCheckpoint(f"this is {kind}", path)


def _from_folder(path: Path) -> TensorSource:
    """The weights in a folder: a safetensors file, else shards by their index, else a pickle. Of several variants of a
    file (model.fp16.safetensors) the shortest name counts."""
    config = read_json(path / "config.json") if (path / "config.json").exists() else None
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
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BrokenCheckpoint("an index of shards without a weight_map", path)
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    held: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name in ("", ".", "..") or len(name) > MAX_FILE_NAME:
            raise BrokenCheckpoint(f"an index of shards with a file in another folder: {shown(name)}", path)
        shard = path.parent / name
        if not shard.is_file():
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
