"""What must be true of a server after every prompt, whatever the prompt was."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import psutil

from tests.server.hostile import OUTSIDE
from tests.server.prompts import Prompt, cascade, draws
from tests.server.serving import PACK, Server

SECONDS = 60
"""Of the processor, for one prompt of few steps."""
HANG = 180
"""Seconds after which a prompt is stopped, whatever the machine is busy with."""
MEMORY = 1_500_000_000
"""Bytes by which the server may ever grow: a training with the tiny cascade takes 400 MB."""
LONGEST = 2000
"""Characters of a message; the path of the file included."""
HOSTS_OWN = {"temp", "user", "log.txt"}
"""What the host writes in its folder."""


class Watch:
    """Watches a server that is started again where a case ends it on purpose. Its methods say what is wrong, or None.

    Args:
        server: what prompts add to its folders is deleted after each case.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.drawn, self._drawing = 10_000, threading.Lock()
        self._files = _listing(server.base.parent)
        self._memory = server.memory(peak=True)

    def wrong_answer(self, prompt: Prompt) -> str | None:
        """Of a prompt that may be refused, or end in an error."""
        logged, used = len(self.server.log()), self._processor()
        status, body = self.server.post("/prompt", {"prompt": prompt})
        wrong = None
        if status == 200:
            wrong = self._wrong_end(json.loads(body)["prompt_id"])
        elif status == 500:  # as the host's own validation answers to some of what is no prompt at all
            wrong = f"status 500 by our code: {log}" if PACK in (log := self.server.log()[logged:]) else None
        elif status != 400:
            wrong = f"status {status}: {body[:500]!r}"
        if wrong is None and (seconds := self._processor() - used) > SECONDS:
            wrong = f"took {seconds:.0f} seconds of the processor"
        return wrong

    def _wrong_end(self, name: str) -> str | None:
        try:
            history = self.server.wait(name, HANG)
        except TimeoutError:
            self.server.stopped(name)
            return f"no end after {HANG} seconds"
        except (AssertionError, OSError):
            return None  # the server ended, as is found next
        error = dict(history["status"]["messages"]).get("execution_error")
        return None if error is None else _wrong_error(error)

    def _processor(self) -> float:
        used = psutil.Process(self.server.process.pid).cpu_times()
        return used.user + used.system

    def wrong_after(self) -> str | None:
        """Of the server and its folders after a case, which are then as they were."""
        if (code := self.server.process.poll()) is not None:
            problem = f"the server ended with code {code}:\n{self.server.log()[-4000:]}"
            self.server.launch()
            return problem
        if problem := self.wrong_files():
            return problem
        if (grown := self.server.memory(peak=True) - self._memory) > MEMORY:
            return f"the server grew by {grown / 1e6:,.0f} MB"
        return self.wrong_image()

    def wrong_files(self) -> str | None:
        """Of all files but those that the host writes; new ones in output and models are deleted."""
        top = self.server.base.parent
        found = _listing(top)
        changed = sorted(str(path) for path, state in self._files.items() if found.get(path) != state)
        added = []
        for path in found.keys() - self._files.keys():
            if any(path.is_relative_to(self.server.base / each) for each in ("output", "models")):
                path.unlink()
            else:
                added.append(str(path))
        outside = [str(OUTSIDE.parent)] if OUTSIDE.parent.exists() else []
        return f"files changed: {changed}, added: {added + outside}" if changed or added or outside else None

    def wrong_image(self) -> str | None:
        """Of a good prompt."""
        with self._drawing:
            self.drawn += 1
            seed = self.drawn
        try:
            size = draws(self.server, cascade(seed=seed, steps=1))
        except (AssertionError, TimeoutError, OSError) as error:
            return f"a good prompt fails: {error}"
        return None if size == (256, 192) else f"a good prompt draws {size}"


def _wrong_error(error: dict[str, Any]) -> str | None:
    """Of an error that ended a prompt in a node or function of ours."""
    if not error["node_type"].startswith("Cascade") and not any(PACK in line for line in error["traceback"]):
        return None
    text = error["exception_message"].removesuffix("\n")
    if not error["exception_type"].startswith("stable_cascade."):
        trace = "".join(error["traceback"])
        return f"{error['node_type']}: {error['exception_type']}: {text[:LONGEST]}\n{trace}"
    if len(text) > LONGEST or not text.isprintable():
        return f"{error['node_type']}: not one line of moderate length: {text[:LONGEST]!r}"
    return None


def _listing(top: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file below the folder that a server's folder is in, but for what the host writes."""
    return {
        path: (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in top.rglob("*")
        if not path.is_dir() and not HOSTS_OWN & set(path.relative_to(top).parts[1:2])
    }
