"""Stage C at high resolution in two passes: a guided one after one of the usual resolution (Ren et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from ..diffusion import InInterval
from ..models import HighResGuides

UNIT = 32
"""The sides of the first pass are multiples of so many pixels."""
SOURCE_TIME = 0.05
"""The time t of the noise at which an image to start from is read, as in the training of the guides."""


@dataclass(frozen=True, kw_only=True)
class HighRes(InInterval):
    """High-res guides in a run of Stage C.

    guides: of the Stage C that runs.
    resolution: of the first pass, in pixels along the side of a square image: what Stage C was trained at.
    weight: a factor of what the guides add; 0 has no effect.
    """

    guides: HighResGuides
    resolution: int = 1024
    weight: float = 1.0

    def weight_at(self, percent: float) -> float:
        """The weight at a part of the run."""
        return self.weight if percent in self.interval else 0.0

    def first_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of the first pass of an image."""
        return first_size(height, width, self.resolution)


def first_size(height: float, width: float, resolution: int) -> tuple[int, int]:
    """Height and width in pixels of an image of the same shape with about `resolution` squared pixels."""
    units, ratio = resolution / UNIT, height / width
    return max(1, int(units * sqrt(ratio))) * UNIT, max(1, int(units / sqrt(ratio))) * UNIT
