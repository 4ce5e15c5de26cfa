"""Uses that break one limit each, on purpose, for the tests of the runner."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from pathlib import Path

from cascade.errors import CascadeError
from tests.fuzz.classes import MEGABYTE, Case, FuzzClass


def _make(dice: random.Random, folder: Path) -> Case:
    path = folder / "file"
    path.write_bytes(dice.randbytes(4))
    return Case(path, "note")


def _fine(case: Case) -> None:
    raise CascadeError(f"{case.path}: damaged")


def _untyped(case: Case) -> None:
    raise KeyError("name")


def _two_lines(case: Case) -> None:
    logging.getLogger("cascade").warning("one\ntwo")


def _advice(case: Case) -> None:
    raise CascadeError("set weights_only to False")


def _before(case: Case) -> None:
    try:
        raise ValueError("half a character: \ud800")
    except ValueError as error:
        found = CascadeError("damaged")
        error.args = ("half a character: \ud800",)
        raise found from error


def _slow(case: Case) -> None:
    end = time.process_time() + 1.2
    while time.process_time() < end:
        pass


def _hangs(case: Case) -> None:
    time.sleep(60)


def _large(case: Case) -> None:
    assert b"1" * (80 * MEGABYTE)


def _ends(case: Case) -> None:
    os._exit(3)


def _changes(case: Case) -> None:
    case.path.write_bytes(b"other bytes")


def _writes(case: Case) -> None:
    (case.path.parent / "more").write_bytes(b"")


def _writes_out(case: Case) -> None:
    (case.path.parent / "out").mkdir()
    (case.path.parent / "out" / "file").write_bytes(b"")


USES = {
    "fine": (_fine, None),  # what the problem says
    "writes_out": (_writes_out, None),
    "untyped": (_untyped, "KeyError: 'name'"),
    "two_lines": (_two_lines, "2 lines"),
    "advice": (_advice, "advises to run code"),
    "before": (_before, "a traceback that cannot be printed"),
    "slow": (_slow, "took "),
    "hangs": (_hangs, "no end after 10 seconds"),
    "ends": (_ends, "code 3"),
    "changes": (_changes, "files changed"),
    "writes": (_writes, "files changed"),
}
if sys.platform != "win32":
    USES["large"] = (_large, "the process grew by")
BROKEN = {name: FuzzClass(name, _make, use, seconds=1, memory=20 * MEGABYTE) for name, (use, _) in USES.items()}
