"""Work of earlier steps that is used again instead of being done: less exact and faster.

- The inner levels of a network, which do most of the work and change slowly: what they add to the stream is kept for
  some steps (Ma et al. 2024, DeepCache), or as long as what enters them changes little (Liu et al. 2025, TeaCache).
- The prediction without the prompt: only its difference to the one with the prompt is kept (Lv et al. 2024,
  FasterCache).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidSettings
from .interval import InInterval

Inner = Callable[[Tensor], Tensor]
"""The inner levels: the stream [B, c, h, w] that enters them -> what leaves them, of the same shape."""


@dataclass(frozen=True, kw_only=True)
class Cache(InInterval):
    """What a run of a stage uses again; the defaults: nothing.

    inner_every: the inner levels run at least at every n-th step; 1: at every step.
    threshold: between those steps they also run where the stream that enters them has changed by more than this since
        they last ran, as a share of its size; 0: this is not measured. It is measured for the image of a batch that
        has changed most, so an image then depends on the others.
    cfg_every: the prediction without the prompt is made at every n-th step; 1: at every step.
    start_percent, end_percent: the part of the run in which work is used again.

    Raises InvalidSettings for numbers of steps below 1, a threshold below 0 or without steps to skip, and a part that
    ends before it starts.
    """

    inner_every: int = 1
    threshold: float = 0.0
    cfg_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inner_every", "cfg_every"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"a cache's {name} must be at least 1, got {getattr(self, name)}")
        if not (self.threshold >= 0 and math.isfinite(self.threshold)):
            raise InvalidSettings(f"a cache's threshold must be at least 0, got {self.threshold}")
        if self.threshold and self.inner_every == 1:
            raise InvalidSettings("a cache's threshold acts between steps: inner_every must be above 1")


@dataclass
class _Kept:
    """What the inner levels added to the stream that entered them, for the rows of one condition."""

    entered: Tensor | None
    """None where changes are not measured."""
    added: Tensor
    age: int = 0


class CacheRun:
    """What a run of a stage keeps, and how often it was used again."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        # A decision is no part of a graph of torch.compile; the levels that it is about may be.
        around: Any = torch.compiler.disable(self._decided, recursive=False)
        self._around: Callable[[Inner, Tensor], Tensor] = around
        self.reset()

    def reset(self) -> None:
        """For another run."""
        self._inner: dict[Hashable, _Kept] = {}
        self._difference: Tensor | None = None
        self._difference_age = 0
        self._call: tuple[Sequence[Hashable], float] = ((), 0.0)
        self.inner_calls = self.inner_reused = self.cfg_steps = self.cfg_reused = 0

    def report(self) -> str:
        """How much was used again, in words."""
        parts = []
        if self.cache.inner_every > 1:
            parts.append(f"the inner levels in {self.inner_reused} of {self.inner_calls} calls")
        if self.cache.cfg_every > 1:
            parts.append(f"the prediction without the prompt in {self.cfg_reused} of {self.cfg_steps} steps")
        return f"used again: {', '.join(parts) or 'nothing'}"

    def around_inner(self, conditions: Sequence[Hashable], percent: float) -> Callable[[Inner, Tensor], Tensor] | None:
        """What the network does about its inner levels in the next call; None: it runs them.

        conditions: a name for each condition of the call, whose rows follow each other in equal parts of the batch.
        """
        if self.cache.inner_every == 1:
            return None
        self._call = tuple(conditions), percent
        return self._around

    def _decided(self, inner: Inner, x: Tensor) -> Tensor:
        """What the inner levels add now, or added before."""
        names, percent = self._call
        rows, kept = x.chunk(len(names)), [self._inner[name] for name in names if name in self._inner]
        self.inner_calls += 1
        if percent in self.cache.interval and self._usable(kept, rows):
            self.inner_reused += 1
            for each in kept:
                each.age += 1
            return x + torch.cat([each.added for each in kept])
        out = inner(x)
        entered = rows if self.cache.threshold > 0 else [None] * len(rows)
        for name, each, added in zip(names, entered, (out - x).chunk(len(names)), strict=True):
            self._inner[name] = _Kept(each, added)
        return out

    def _usable(self, kept: Sequence[_Kept], rows: Sequence[Tensor]) -> bool:
        if len(kept) < len(rows) or any(each.age + 1 >= self.cache.inner_every for each in kept):
            return False
        if any(
            (x.shape, x.device) != (each.added.shape, each.added.device) for x, each in zip(rows, kept, strict=True)
        ):
            return False
        if self.cache.threshold == 0:
            return True
        before = [each.entered for each in kept if each.entered is not None]
        x, entered = torch.cat(list(rows)).float(), torch.cat(before).float()
        change = (x - entered).abs().mean((1, 2, 3)) / entered.abs().mean((1, 2, 3)).clamp_min(1e-12)
        return float(change.max()) < self.cache.threshold

    def predictions(
        self,
        percent: float,
        both: Callable[[], tuple[Tensor, Tensor]],
        cond: Callable[[], Tensor],
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """The predictions with and without the prompt in one step.

        both, cond: make both of them, and that with the prompt alone.
        scale: of the predictions in this step; what is kept is scaled by it.
        """
        if self.cache.cfg_every == 1:
            return both()
        self.cfg_steps += 1
        kept = self._difference
        young = self._difference_age + 1 < self.cache.cfg_every
        if kept is not None and young and percent in self.cache.interval:
            positive = cond()
            if positive.shape == kept.shape:
                self.cfg_reused += 1
                self._difference_age += 1
                return positive, positive - kept * scale
        positive, negative = both()
        self._difference, self._difference_age = (positive - negative) / scale, 0
        return positive, negative
