"""Tars that lie elsewhere: `s3://` through the AWS command line, and `pipe:` with any command.

Nothing is started unless a settings file names such a place; a `pipe:` is a command of that file, run by the shell.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import InvalidConfig, NotWritable, one_line
from ..files import write_atomically
from .lock import writing

log = logging.getLogger("cascade")

S3, PIPE = "s3://", "pipe:"
TRIES = 3
PAUSE = 2.0
"""Seconds before another try; twice as many before the next."""
ROOM = 1 << 20
"""Bytes that are free on a disk that is not full."""
PLACES = 100_000
"""That braces may stand for."""
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")


def is_remote(place: str) -> bool:
    return place.startswith((S3, PIPE))


def expand(place: str) -> list[str]:
    """What the braces of a place stand for: `{000..127}` numbers, `{a,b}` words. Raises ValueError for too many."""
    found = [place]
    while match := _BRACES.search(found[0]):
        options = _options(match[1])
        if len(options) * len(found) > PLACES:
            raise ValueError(f"{place}: more than {PLACES} places")
        # All have the same braces at the same place of their pattern, whatever stands in front of it.
        parts = [_BRACES.split(each, maxsplit=1) for each in found]
        found = [f"{before}{option}{after}" for before, _, after in parts for option in options]
    return found


def _options(inner: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if numbers is None:
        return inner.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if abs(last - first) >= PLACES:
        raise ValueError(f"{{{inner}}}: more than {PLACES} places")
    width = len(numbers[1]) if numbers[1].startswith("0") else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def missing_program(places: Sequence[str]) -> str | None:
    """What is not installed here and is needed for these places."""
    wanted = next((place for place in places if place.startswith(S3)), None)
    return f"the program aws, for {wanted}" if wanted is not None and shutil.which("aws") is None else None


def listed(place: str) -> list[tuple[str, str]]:
    """(tar, what tells one version of it from another) at a place. A tar itself is not looked up; below another
    `s3://` place the tars are listed. Raises InvalidConfig."""
    if place.startswith(PIPE) or place.endswith(".tar"):
        return [(place, place)]
    lines = _run(["aws", "s3", "ls", place, "--recursive"], place).decode("utf-8", "replace").splitlines()
    bucket = "/".join(place.split("/")[:3])
    found = [line.split(maxsplit=3) for line in lines if line.endswith(".tar")]
    tars = [(f"{bucket}/{each[3]}", " ".join(each)) for each in found if len(each) == 4]
    if not tars:
        raise InvalidConfig(f"{place}: no .tar is there")
    return sorted(tars)


def fetch(place: str, folder: Path) -> Path:
    """Copy a remote tar to a folder, whole or not at all; one that is there stays.

    Raises:
        InvalidConfig: the command failed, three times.
        NotWritable: there is no room.
    """
    path = folder / f"{hashlib.sha256(place.encode()).hexdigest()[:24]}.tar"
    if path.exists():
        return path
    command: Any = place.removeprefix(PIPE) if place.startswith(PIPE) else ["aws", "s3", "cp", place, "-"]

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            _run(command, place, file)

    with writing(folder):
        write_atomically(path, write)
    return path


def _run(command: str | list[str], place: str, output: IO[bytes] | None = None) -> bytes:
    """What a command writes, or nothing where it goes to `output`. Raises InvalidConfig, NotWritable."""
    said = ""
    for attempt in itertools.count(1):
        try:
            result = subprocess.run(
                command,
                shell=isinstance(command, str),  # a `pipe:` is what the settings file asks for
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if output is None else output,
                stderr=subprocess.PIPE,
                check=False,
            )
        except FileNotFoundError as error:
            raise InvalidConfig(f"{place}: the program {error.filename} is not installed here") from error
        if result.returncode == 0:
            return result.stdout or b""
        said = one_line(result.stderr.decode("utf-8", "replace").strip() or f"status {result.returncode}")[-300:]
        if output is not None and shutil.disk_usage(Path(output.name).parent).free < ROOM:
            # The command only says that it could not write; another try would end alike.
            raise NotWritable(f"{Path(output.name).parent}: the disk is full; {place} needs room there")
        if attempt == TRIES:
            break
        log.warning("%s: not read (%s), another try in %g seconds", place, said, PAUSE * attempt)
        time.sleep(PAUSE * attempt)
        if output is not None:
            output.seek(0)
            output.truncate()
    raise InvalidConfig(f"{place}: could not be read, {TRIES} times: {said}")
