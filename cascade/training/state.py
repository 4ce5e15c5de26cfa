"""Everything a run needs to go on exactly where it stopped, in one file written in one move."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from ..errors import BrokenCheckpoint
from ..files import write_atomically

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
