"""One training at a time in a folder."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import FolderInUse, NotWritable
from ..files import open_regular, write_atomically

LOCK_FILE, OWNER_FILE = "training.lock", "training.owner.json"
OWNER_BYTES = 1000
"""More than what names the owner."""
_held = threading.local()
"""`folders`: those that this thread holds."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a training's folder, which is made; nested in itself it does nothing.

    The operating system keeps the lock and releases it with its process, however that ends: none is left over.

    Raises:
        FolderInUse: another training holds it; names its process.
        NotWritable: the folder or the lock cannot be made.
    """
    held: set[Path] = _held.__dict__.setdefault("folders", set())
    place = Path(os.path.realpath(folder))  # `resolve` has an error of its own for a link to itself
    if place in held:
        yield
        return
    lock = FileLock(place / LOCK_FILE, timeout=0)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise FolderInUse(
            f"{folder}: {_owner(place)} trains there. Wait until it ends or stop it, or choose another folder or name."
        ) from error
    except OSError as error:
        raise NotWritable(f"{folder}: this folder cannot be written: {error.strerror or error}") from error
    held.add(place)
    try:
        owner = {"process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with writing(folder):
            write_atomically(place / OWNER_FILE, lambda path: path.write_text(json.dumps(owner), encoding="utf-8"))
        yield
    finally:
        held.discard(place)
        with suppress(OSError):  # Windows keeps what another process is just reading
            (place / OWNER_FILE).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        with open_regular(folder / OWNER_FILE) as file:
            owner = json.loads(file.read(OWNER_BYTES))
        return f"process {int(owner['process'])} (since {str(owner['since'])[:19]})"
    except (OSError, ValueError, LookupError, TypeError):  # it is just being written
        return "another process"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into NotWritable, which names the folder of the training."""
    try:
        yield
    except OSError as error:
        raise NotWritable(
            f"{folder}: could not be written: {error.strerror or error}. The state that was saved last is as it was: "
            "make room and run the training again, and it continues from there."
        ) from error
