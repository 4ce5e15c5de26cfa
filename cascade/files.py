"""Writing files and folders completely or not at all, and opening files that may be something else."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .errors import InvalidName, shown

NAME_BYTES = 200
"""Of a name: file systems take 255, and endings, numbers and temporaries add to what a user writes."""
PATH_BYTES = 200 if os.name == "nt" else 3800
"""Of a whole path: Windows takes 260 characters, Linux 4096 bytes, macOS less, which it says itself."""
PROCESS = re.compile("[1-9][0-9]{0,8}")
"""The number of a process, as a temporary's name has it; larger ones do not fit the system's calls."""
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"
}


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. A pipe, on which reading would wait without end, or a device is refused.

    Raises:
        OSError: it is not a file, or cannot be read.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  it is returned
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` create a file or a folder next to `path`, flush it to the disk, and move it to `path`.

    A crash at any moment leaves either what was there before or all of the new. If writing fails, the temporary is
    removed, and so is what killed processes left of theirs for the same path. Missing parent folders are created. A
    symbolic link at `path` is replaced; its target stays as it is, and so does what a program has mapped of a file.

    Raises:
        OSError: it could not be written, a new folder would replace one that is not empty, or a pipe or device is at
            `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink() and path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    remove_abandoned(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)  # a killed process may have had the same number, which is usual in containers
    try:
        write(temporary)
        for each in (temporary, *temporary.rglob("*")):
            _flush(each)
        if temporary.is_dir() and path.is_dir():
            path.rmdir()  # Windows does not move a folder over an empty one
        temporary.replace(path)
    finally:
        _remove(temporary)
    _flush(path.parent)


def write_if_changed(path: Path, content: bytes) -> None:
    """Write a file atomically, unless it holds this already: its time then stays. Raises OSError."""
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _flush(path: Path) -> None:
    if not path.is_dir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    elif os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems do not flush folders
                os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete the temporaries in a folder whose processes no longer run: those of one file, or all."""
    if os.name != "posix":  # elsewhere signal 0 ends a process
        return
    for temporary in folder.glob(".*.tmp" if name is None else f".{glob.escape(name)}.*.tmp"):
        owner = temporary.name.split(".")[-2]
        if PROCESS.fullmatch(owner) and not _runs(int(owner)):
            _remove(temporary)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_name(path: Path, *, windows: bool = os.name == "nt") -> None:
    """Raise InvalidName where no file could be written to this path, before the work for it is done.

    windows: by the rules of Windows too, which others need that the file is copied to.
    """
    text = os.fspath(path)
    if (problem := _not_text(text)) is not None:
        raise InvalidName(f"{shown(text)}: {problem}")
    if len(os.fsencode(os.path.abspath(text))) > PATH_BYTES:  # noqa: PTH100  resolve() reads the disk
        raise InvalidName(f"{shown(text)}: the path has more than {PATH_BYTES} bytes")
    for part in Path(text).parts[1 if path.anchor else 0 :]:
        problem = _not_a_name(part, windows)
        if problem is not None and part not in (".", ".."):
            raise InvalidName(f"{shown(text)}: {problem}")


def _not_text(text: str) -> str | None:
    """What is wrong with a text in a name; surrogates stand for bytes that are not UTF-8, or are half a character."""
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        return "a name has no control characters"
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return "a name is Unicode text"
    return None


def _not_a_name(part: str, windows: bool) -> str | None:
    if len(part.encode()) > NAME_BYTES:
        return f"a name has at most {NAME_BYTES} bytes, this one {len(part.encode())}"
    if not windows:
        return None
    if wrong := set(part) & set('<>:"|?*\\'):
        return f"Windows has no names with {' '.join(sorted(wrong))}"
    if part.endswith((".", " ")):
        return "Windows has no names that end in a dot or a space"
    if part.split(".")[0].rstrip().upper() in _RESERVED:
        return f"{part} is a device of Windows"
    return None
