"""How a training is stopped from outside."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("cascade")


@contextmanager
def stop_signals(*, launched: bool) -> Iterator[Callable[[], bool]]:
    """Note the first ctrl-C or SIGTERM instead of dying of it. Outside the main thread signals are not ours to take.

    A second ctrl-C raises KeyboardInterrupt at once, except where the process was `launched` by torchrun: a terminal
    sends one ctrl-C to both, and torchrun passes it on.
    """
    stopped = threading.Event()

    def note(number: int, frame: Any) -> None:
        if stopped.is_set() and number == signal.SIGINT and not launched:
            raise KeyboardInterrupt
        stopped.set()
        log.info("stopping after this step%s", "" if launched else "; once more to stop at once, without saving")

    if threading.current_thread() is not threading.main_thread():
        yield stopped.is_set
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
