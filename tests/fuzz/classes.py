"""What a class of fuzz cases is, and the list of all of them."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade.errors import CascadeError

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Case:
    """A damaged input.

    Args:
        path: the damaged file or folder. Texts are files too, so that what fails can be kept.
        note: what was damaged, for the report.
        detail: what else `use` must know.
    """

    path: Path
    note: str = ""
    detail: Any = None


@dataclass(frozen=True)
class FuzzClass:
    """One class of cases: how they are made, what uses them, and the limits that hold for each of them.

    A case fails if `use` raises anything but `errors`, if a message of an error or of our logger cannot be printed or
    has more than one line, if the process ends, if it takes too long or too much memory, or if a file that `make` wrote
    is changed or another appears. Only below `folder / "out"` may `use` write.

    Args:
        name: of the class, as the command line takes it.
        make: writes one damaged input into the empty folder, all chance from the `Random` given.
        use: gives it to a public surface.
        errors: what it may raise.
        prepare: is called once in the process before the first case, for imports and for originals that are damaged
            later. Neither its time nor its memory counts.
        seconds: of the processor, for one case.
        memory: bytes by which the process may grow over all cases.
    """

    name: str
    make: Callable[[random.Random, Path], Case]
    use: Callable[[Case], object]
    errors: tuple[type[BaseException], ...] = (CascadeError,)
    prepare: Callable[[], object] | None = None
    seconds: float = 5.0
    memory: int = 300 * MEGABYTE


def all_classes() -> dict[str, FuzzClass]:
    """name -> class, of every module `damaged_*.py` beside this one."""
    found: dict[str, FuzzClass] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("damaged_"):
            for each in importlib.import_module(f"tests.fuzz.{module.name}").CLASSES:
                if each.name in found:
                    raise ValueError(f"two classes of cases are named {each.name}")
                found[each.name] = each
    return found
