"""Everything a run needs to go on exactly where it stopped, in one file written in one move."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import BrokenCheckpoint

STATE_FILE = "state.pt"
_FORMAT = 2


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, containers) to folder/state.pt.

    The new file is complete and on the disk before it takes the place of the old one, so a crash at any
    moment leaves one or the other.
    """
    write_atomically(folder / STATE_FILE, lambda path: torch.save({"format": _FORMAT, **state}, path))


def load_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The saved state, or None when there is none yet. Raises BrokenCheckpoint. Never runs code of the file."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise BrokenCheckpoint(f"{path}: not a readable training state ({error}); delete it to restart") from error
    if state.get("format") != _FORMAT:
        raise BrokenCheckpoint(f"{path}: a training state of another version; delete it to restart")
    return state


def write_atomically(path: Path, write: Any) -> None:
    """Call write(temporary path), flush it to the disk and move it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the rename itself is on the disk only with its folder
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporary_for(path: Path) -> Path:
    """Where this process prepares what will become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_abandoned(folder: Path) -> None:
    """Delete what killed processes were preparing in the folder."""
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return
    for temporary in folder.glob(".*.tmp"):
        owner = temporary.name.split(".")[-2]
        if owner.isdigit() and not _runs(int(owner)):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
