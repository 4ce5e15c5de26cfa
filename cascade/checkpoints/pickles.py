"""Reading the tensors of a file of torch.save without torch's reader: no code runs, and memory follows the file's size.

A zip archive has `data.pkl` and a file for each storage; the older format has four pickles (magic number, protocol,
system, content), a fifth with the names of the storages, and then the storages, each after its number of values.
Tensors are mapped from their places in the file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import BrokenCheckpoint, UnsafeCheckpoint, shown
from ..files import open_regular
from .header import ALIGNMENT, MAX_HEADER
from .pickle_machine import MAX_STEPS, Code, Damaged, Described, Machine, Storage

MAX_SHARED = 4
"""How often the bytes of a file may count: tensors may share their values, but not make gigabytes of a small file."""
MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of the older format."""


TABLES = ("state_dict", "model_state_dict")
"""Names of a network's table in the table of a training's state."""


class NoTable(ValueError):
    """A pickle without fault, but not of a table of tensors."""


Places = Callable[[Storage], int]
"""Where the bytes of a storage begin in the file. Raises LookupError."""
_ERRORS = (ValueError, LookupError, TypeError, EOFError, OverflowError, RuntimeError, struct.error, zipfile.BadZipFile)
"""What Python's readers raise for damaged archives and pickles, and the machine for values of another type."""


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, of its table or of one of `TABLES` in that, mapped from the file.

    Writing to a tensor changes memory, never the file.

    Raises:
        BrokenCheckpoint: damaged, truncated, not a table of tensors, or not as torch writes it.
        UnsafeCheckpoint: it refers to code, which was not run.
    """
    try:
        with open_regular(path) as file:
            zipped = file.read(2) == b"PK"
            content, places = (_read_zip if zipped else _read_old)(file)
        return _mapped(path, _table(content), places)
    except Code as error:
        raise UnsafeCheckpoint(f"a pickle that contains code, which was not run: it calls {error}", path) from None
    except NoTable as error:
        raise BrokenCheckpoint(str(error), path) from None
    except _ERRORS as error:
        detail = f": {error}" if isinstance(error, Damaged) else ""
        raise BrokenCheckpoint(f"a damaged or truncated pickle{detail}", path) from error


def read_archive(path: Path, device: torch.device | str = "cpu") -> Any:
    """What torch.save wrote to a zip archive, whole: tables, lists, numbers, texts, and tensors, on the device.

    Raises:
        BrokenCheckpoint: damaged, truncated, not as torch writes it, or with a byte that was changed since.
        UnsafeCheckpoint: it refers to code, which was not run.
    """
    try:
        with open_regular(path) as file:
            content, places = _read_zip(file)
            with zipfile.ZipFile(file) as archive:
                if (changed := archive.testzip()) is not None:
                    raise Damaged(f"the checksum of {shown(changed)} is another")
        mapped = _mapped(path, {str(id(each)): each for each in _tensors_in(content)}, places)
        tensors = {name: tensor.to(device, copy=True) for name, tensor in mapped.items()}
        return _filled(content, tensors)
    except Code as error:
        raise UnsafeCheckpoint(f"a pickle that contains code, which was not run: it calls {error}", path) from None
    except _ERRORS as error:
        detail = f": {error}" if isinstance(error, Damaged) else ""
        raise BrokenCheckpoint(f"a damaged or truncated archive{detail}", path) from error


def _tensors_in(content: Any) -> Iterator[Described]:
    """Those in tables and lists. Raises Damaged for more of these than a pickle's steps make: one is inside itself."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_STEPS:
            raise Damaged("a table or a list is inside itself")
        if isinstance(value, Described):
            yield value
        elif isinstance(value, dict | list | tuple):
            waiting += value.values() if isinstance(value, dict) else value


def _filled(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(content, Described):
        return tensors[str(id(content))]
    if isinstance(content, dict):
        return {name: _filled(value, tensors) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_filled(value, tensors) for value in content)
    return content


def _table(content: Any) -> dict[str, Described]:
    if not isinstance(content, dict):
        raise NoTable(f"a pickle of a {type(content).__name__}, not of a table of tensors")
    table = next((nested for name in TABLES if isinstance(nested := content.get(name), dict)), content)
    for name, value in table.items():
        if not isinstance(name, str) or not isinstance(value, Described):
            raise NoTable(f"not a table of tensors: {shown(name)} is a {type(value).__name__}")
    return table


def _read_zip(file: BinaryIO) -> tuple[Any, Places]:
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(_Limited(file)) as archive:  # type: ignore[arg-type]
        listed = archive.infolist()
    entries = {entry.filename: entry for entry in listed}
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in listed):
        raise Damaged("its archive is compressed")
    if len(entries) < len(listed) or sum(entry.file_size for entry in listed) > size:
        raise Damaged("its archive claims more than the file has")
    pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise Damaged("its archive has no data.pkl, or several")
    start = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        file.seek(_start(file, entries[name].header_offset))
        if entries[name].file_size > MAX_HEADER:
            raise Damaged(f"its {name} has more than {MAX_HEADER:,} bytes")
        return file.read(entries[name].file_size)

    if f"{start}byteorder" in entries and read(f"{start}byteorder") != b"little":
        raise Damaged("the order of its bytes is not little-endian")
    machine = Machine()
    content = machine.run(io.BytesIO(read(pickles[0])))
    starts: dict[str, int] = {}
    for key, storage in machine.storages.items():
        entry = entries[f"{start}data/{key}"]
        if entry.file_size < storage.bytes:
            raise Damaged("a storage is smaller than its tensors")
        starts[key] = _start(file, entry.header_offset)
    return content, lambda storage: starts[storage.key]


def _start(file: BinaryIO, header: int) -> int:
    """Where the bytes of a stored entry begin: after its local header, whose name and extra field have any length."""
    if header < 0:
        raise Damaged("an entry of its archive is not there")
    file.seek(header)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise Damaged("an entry of its archive is not there")
    return header + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _read_old(file: BinaryIO) -> tuple[Any, Places]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = io.BytesIO(file.read(MAX_HEADER))
    machine = Machine()
    first = machine.run(head)
    starts: dict[str, int] = {}
    if first != MAGIC:
        return first, lambda storage: starts[storage.key]  # a plain pickle: no tensor in it has values
    for _ in range(2):
        machine.run(head)
    content, keys = machine.run(head), machine.run(head)
    position = head.tell()
    for key in keys:
        storage = machine.storages[key]
        file.seek(position)
        if int.from_bytes(file.read(8), "little") != storage.count:
            raise Damaged("a storage has another size than its tensors say")
        starts[key] = position + 8
        position += 8 + storage.bytes
        if position > size:
            raise Damaged("its storages are larger than the file")
    return content, lambda storage: starts[storage.key]


class _Limited:
    """A file for `zipfile`, which reads the list of an archive's entries whole, however large it claims to be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, size: int = -1) -> bytes:
        if size > MAX_HEADER:
            raise Damaged(f"the list of its archive has more than {MAX_HEADER:,} bytes")
        return self.file.read(size if size >= 0 else MAX_HEADER)


def _mapped(path: Path, table: Mapping[str, Described], places: Places) -> dict[str, Tensor]:
    if not table:
        return {}
    if sum(tensor.bytes for tensor in table.values()) > MAX_SHARED * path.stat().st_size:
        raise Damaged("its tensors claim more values than the file has")
    whole = torch.from_numpy(np.asarray(np.memmap(path, mode="c")))
    storages: dict[Storage, Tensor] = {}
    for storage in dict.fromkeys(tensor.storage for tensor in table.values()):
        start = places(storage)
        data = whole[start : start + storage.bytes]
        if len(data) < storage.bytes:
            raise Damaged("its storages are larger than the file")
        # The older format has storages at any byte, where only bytes can lie.
        storages[storage] = data if data.data_ptr() % ALIGNMENT == 0 else data.clone()
    tensors: dict[str, Tensor] = {}
    for name, one in table.items():
        values = storages[one.storage].view(one.dtype)
        tensors[name] = torch.as_strided(values, one.shape, one.strides, values.storage_offset() + one.offset)
    return tensors
