"""Runs cases in a process of their own, which is started anew after a case that ended, stopped or filled it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from cascade.errors import printable

from .classes import MEGABYTE, Case, FuzzClass, all_classes

HANG = 120.0
"""Seconds after which a case is ended, whatever the machine is busy with."""
START = 1200.0
"""Seconds for a new process until it can use its first case."""
READY = "ready"
"""What a process says when it has made what its class needs."""
LONGEST = 2000
"""Characters of a message; the path of the file included."""
KEPT = 10 * MEGABYTE
"""Bytes of a failed case that are kept at most; a larger one can be made again from its seed."""


@dataclass(frozen=True)
class Order:
    """One case: where it comes from, and the folder for it."""

    name: str
    seed: str
    index: int
    folder: Path

    @property
    def random(self) -> random.Random:
        return random.Random(f"{self.seed} {self.name} {self.index}")


class Runner:
    """Runs cases one after another; use it in a `with`.

    Args:
        keep: the folder for cases that fail; None keeps none.
        classes: by default all.
        hang: seconds.
    """

    def __init__(
        self, keep: Path | None = None, classes: Mapping[str, FuzzClass] | None = None, hang: float = HANG
    ) -> None:
        self.keep, self.classes, self.hang = keep, classes, hang
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._work = tempfile.TemporaryDirectory(prefix="fuzz-")

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()
        self._work.cleanup()

    def run(self, name: str, seed: str, index: int) -> str | None:
        """Run one case; what is wrong with it, or None."""
        folder = Path(self._work.name) / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        order = Order(name, seed, index, folder)
        problem = self._answer(order)
        if problem is not None and self.keep is not None:
            _keep(order, problem, self.keep)
        return problem

    def _answer(self, order: Order) -> str | None:
        pipe = self._pipe or self._start()
        try:
            pipe.send(order)
            if pipe.poll(START) and pipe.recv() == READY and pipe.poll(self.hang):
                problem, large = pipe.recv()
                if large:
                    self._end()
                return problem
            problem = f"no end after {self.hang:.0f} seconds"
        except (EOFError, OSError):
            assert self._process is not None
            self._process.join(self.hang)
            problem = f"the process ended with code {self._process.exitcode}"
        self._end()
        return problem

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.classes), daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        return ours

    def _end(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None


def _keep(order: Order, problem: str, keep: Path) -> None:
    place = keep / f"{order.name}-{order.seed}-{order.index}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "problem.txt").write_text(problem + "\n", encoding="utf-8", errors="backslashreplace")
    files = [path for path in order.folder.rglob("*") if path.is_file()]
    if sum(path.stat().st_size for path in files) <= KEPT:
        for path in files:
            target = place / path.relative_to(order.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _work(pipe: Connection, classes: Mapping[str, FuzzClass] | None) -> None:
    """The loop of the process: takes orders, answers with a problem or None."""
    messages = _Messages()
    logging.getLogger("cascade").addHandler(messages)
    warnings.simplefilter("ignore")
    classes = all_classes() if classes is None else classes
    prepared: set[str] = set()
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        chosen = classes[order.name]
        if order.name not in prepared:
            if chosen.prepare is not None:
                chosen.prepare()
            prepared.add(order.name)
        pipe.send(READY)
        messages.texts.clear()
        start = forget_peak()
        problem = _problem(chosen, order, messages.texts)
        grown = peak_memory() - start
        large = grown > chosen.memory
        if large:
            problem = problem or f"the process grew by {grown / MEGABYTE:,.0f} MB"
        pipe.send((problem, large))


def _problem(chosen: FuzzClass, order: Order, messages: list[str]) -> str | None:
    case = chosen.make(order.random, order.folder)
    before = _listing(order.folder)
    start = time.process_time()
    problem = _wrong_error(chosen, case, messages)
    seconds = time.process_time() - start
    if problem is None and seconds > chosen.seconds:
        problem = f"took {seconds:.1f} seconds"
    if problem is None and _listing(order.folder) != before:
        problem = f"files changed: {sorted(_listing(order.folder).items() ^ before.items())}"
    problem = problem or next((wrong for text in messages if (wrong := _wrong_text(text))), None)
    return f"{problem}\n{case.note}\n{case.path.name!a}" if problem is not None else None


def _wrong_error(chosen: FuzzClass, case: Case, messages: list[str]) -> str | None:
    try:
        chosen.use(case)
    except chosen.errors as error:
        messages.append(str(error))
        # Whoever prints it prints the errors before it too.
        whole = "".join(traceback.format_exception(error))
        if printable(whole) != whole:
            return f"a traceback that cannot be printed: {whole!a}"
    except BaseException:  # noqa: BLE001  whatever it is, it is what the run is for
        return traceback.format_exc()
    return None


def _wrong_text(text: str) -> str | None:
    """What is wrong with a message for users."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"a message that cannot be printed: {text!a}"
    if len(text.splitlines()) > 1 or len(text) > LONGEST:
        return f"a message of {len(text.splitlines())} lines and {len(text):,} characters: {text[:LONGEST]}"
    if "weights_only" in text:
        return f"a message that advises to run code: {text}"
    return None


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of what is in a folder, without what is below `out`."""
    found: dict[str, tuple[int, int]] = {}
    for path in folder.iterdir():
        if path.name != "out":
            found[path.name] = _state(path)
            if path.is_dir() and not path.is_symlink():
                found |= {f"{path.name}/{name}": state for name, state in _listing(path).items()}
    return found


def _state(path: Path) -> tuple[int, int]:
    state = path.lstat()
    return (0, 0) if path.is_dir() else (state.st_size, state.st_mtime_ns)


def forget_peak() -> int:
    """Bytes at the start of a case: cases of other classes, which may take more, ran in the process before.

    On Linux the peak begins anew there; elsewhere it is the peak so far.
    """
    with contextlib.suppress(OSError):  # Linux alone has the file, and some containers forbid it
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_memory()


def peak_memory() -> int:
    """The most bytes that this process had in memory so far; 0 on Windows, which does not say it so simply."""
    if sys.platform == "win32":
        return 0
    if sys.platform == "linux":  # where getrusage begins with the peak of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _Messages(logging.Handler):
    """Collects what our loggers say."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
