"""A state that is written while the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor


class Background:
    """At most one save at a time: its work goes on by itself, and what is left is done by who asks for its end."""

    def __init__(self) -> None:
        self._running: tuple[Future[Any], Callable[[Future[Any]], object]] | None = None

    def start(
        self, work: Future[Any] | Callable[[], object], then: Callable[[Future[Any]], object] | None = None
    ) -> None:
        """Run `work` in a thread of its own, or go on with what runs already; `then(future)` is what is left.

        The save before is finished.
        """
        if not isinstance(work, Future):
            executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
            work = executor.submit(work)
            executor.shutdown(wait=False)
        self._running = work, then or Future.result

    def finish(self, *, wait: bool = True) -> None:
        """Do what is left of a save whose work is done; without `wait`, nothing if it is not. Raises what that did."""
        if self._running is None or not (wait or self._running[0].done()):
            return
        (work, then), self._running = self._running, None
        then(work)


def copied(state: Any) -> Any:
    """A state (dicts, lists and tuples) with copies of its tensors in the CPU's memory: what trains on is not in it."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([copied(value) for value in state])
    return state
