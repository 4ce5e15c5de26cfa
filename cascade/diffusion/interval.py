"""Parts of a sampling run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..errors import InvalidSettings

ROUNDING = 1e-5
"""How far outside an interval a step may be and still belong to it: noise levels are rounded to float32."""


@dataclass(frozen=True)
class Interval:
    """A part of a sampling run, in ComfyUI's direction: 0 is the start of sampling (noise), 1 its end (clean image).

    Raises InvalidSettings if it ends before it starts.
    """

    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if not self.start_percent <= self.end_percent:
            raise InvalidSettings(
                f"start_percent {self.start_percent:g} must not be above end_percent {self.end_percent:g}"
            )

    def __contains__(self, percent: float) -> bool:
        """Whether a step at `percent` belongs to it. Both ends do, as in ComfyUI and in the released code."""
        return self.start_percent - ROUNDING <= percent <= self.end_percent + ROUNDING


@dataclass(frozen=True, kw_only=True)
class InInterval:
    """What acts in a part of a run, from start_percent to end_percent, see `Interval`.

    Raises InvalidSettings if that ends before it starts.
    """

    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        _ = self.interval

    @cached_property
    def interval(self) -> Interval:
        """The part of the run in which it acts."""
        return Interval(self.start_percent, self.end_percent)
