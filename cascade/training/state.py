"""Everything a run needs to go on exactly where it stopped, in one file written in one move."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.pickles import read_archive
from ..errors import BrokenCheckpoint, CheckpointError
from ..files import write_atomically
from .config import TrainingConfig

STATE_FILE = "state.pt"
STATES = "states"
"""Folder of earlier states, and of the parts of networks that are split."""
_FORMAT = 2


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, containers) to folder/state.pt.

    The new file is complete and on the disk before it takes the place of the old one, so a crash at any
    moment leaves one or the other.
    """

    def write(path: Path) -> None:
        # A file of Python's: torch's own writer says of a full disk only that it failed.
        with path.open("wb") as file:
            torch.save({"format": _FORMAT, **state}, file)

    write_atomically(folder / STATE_FILE, write)


def place_of(folder: Path, step: int) -> Path:
    """Where a run keeps what belongs to its state at a step, beside `state.pt`."""
    return folder / STATES / f"step_{step:08d}"


def keep_states(folder: Path, step: int, config: TrainingConfig) -> None:
    """After the state at `step` was saved: copy it to its place if it is to be kept, and delete those that are not.

    The last `keep` stay, and those at multiples of `backup_every`. To go back, copy one's `state.pt` over the run's.
    """
    every, place = config.backup_every, place_of(folder, step)
    if config.keep > 1 or config.shard or (every and step % every == 0):
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / STATE_FILE, lambda path: shutil.copyfile(folder / STATE_FILE, path))
    found = sorted((folder / STATES).glob("step_*"))
    recent = [each for each in found if each.name <= place.name][-config.keep :]
    for each in found:
        number = each.name.removeprefix("step_")
        permanent = bool(every and number.isdigit() and int(number) % every == 0)
        if not permanent and each not in recent:
            shutil.rmtree(each, ignore_errors=True)


def load_state(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The saved state, or None when there is none yet. Never runs code of the file.

    Raises BrokenCheckpoint: not a state of this version, or one of its bytes is not as it was written.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = read_archive(path, device)
    except (CheckpointError, OSError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise BrokenCheckpoint(f"not a readable training state ({reason}); delete it to restart", path) from error
    version = state.get("format") if isinstance(state, dict) else None
    if not isinstance(version, int) or version != _FORMAT:
        raise BrokenCheckpoint("a training state of another version; delete it to restart", path)
    return state
