"""Classifier-free guidance (Ho & Salimans 2022).

With rescaling (Lin et al. 2024, section 3.4) and a time interval (Kynkaanniemi et al. 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """How the conditional and the unconditional prediction become one.

    scale: 1 is the conditional prediction alone; (first, last) goes from first at t = 1 to last at t = 0, linear in t.
    rho: share of the rescaling that brings the result back to the deviation of the conditional prediction; 0 is none.
    t_start, t_stop: guidance acts for t_stop <= t <= t_start.
    per_image: deviations of each image by itself. False takes them over the whole batch as the released code does,
        which makes an image depend on its neighbors.
    """

    scale: float | tuple[float, float] = 4.0
    rho: float = 0.7
    t_start: float = 1.0
    t_stop: float = 0.0
    per_image: bool = True

    def __post_init__(self) -> None:
        if len(self._ends) != 2:
            raise ValueError(f"guidance scale must be a number or (first, last), got {self.scale!r}")
        for name, value in (("scale", self._ends[0]), ("scale", self._ends[1]), ("rho", self.rho)):
            if not math.isfinite(value):
                raise ValueError(f"guidance {name} must be a finite number, got {value}")
        if not self.t_stop <= self.t_start:
            raise ValueError(f"guidance t_stop {self.t_stop} must not be above t_start {self.t_start}")

    @property
    def _ends(self) -> tuple[float, ...]:
        return (self.scale, self.scale) if isinstance(self.scale, (int, float)) else tuple(self.scale)

    def scale_at(self, t: float) -> float:
        """The scale at time t, 1.0 outside the interval."""
        rounding = 1e-6  # an end of the interval belongs to it however the step's t was computed
        if not self.t_stop - rounding <= t <= self.t_start + rounding:
            return 1.0
        first, last = self._ends
        return first * t + last * (1 - t)

    def combine(self, cond: Tensor, uncond: Tensor, t: float) -> Tensor:
        """Predictions [B, ...] -> the guided prediction at time t."""
        guided = torch.lerp(uncond, cond, self.scale_at(t))
        if self.rho == 0:
            return guided
        dims = tuple(range(1 if self.per_image else 0, cond.ndim))
        ratio = cond.std(dims, keepdim=True) / (guided.std(dims, keepdim=True) + 1e-9)
        return guided * (self.rho * ratio + (1 - self.rho))
