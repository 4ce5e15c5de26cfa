"""Classifier-free guidance (Ho & Salimans 2022).

With rescaling (Lin et al. 2024, section 3.4), an interval of the run (Kynkaanniemi et al. 2024), and a scale of its own
for the images that ControlNets read (Brooks et al. 2023, InstructPix2Pix, eq. 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InvalidSettings
from .interval import Interval


@dataclass(frozen=True)
class Guidance:
    """How the conditional and the unconditional prediction are combined.

    cfg: guidance scale; 1 is the conditional prediction alone.
    cfg_rescale: how much of the rescaling is applied that gives the result the standard deviation of the conditional
        prediction, 0 (none) to 1; the released `rho`.
    cfg_end: the scale at the end of the run, with a linear change from `cfg` at its start; None: `cfg` throughout.
    start_percent, end_percent: the part of the run in which guidance acts, see `Interval`; the scale is 1 outside.
    per_image: standard deviations of each image by itself. False takes them over the whole batch as the released code
        does, which makes an image depend on the others in its batch.
    image_cfg: guidance scale of the images that ControlNets read, in addition, wherever `cfg` acts; 1: they are not
        guided by. Any other value costs a third prediction, without prompt and images.
    """

    cfg: float = 4.0
    cfg_rescale: float = 0.7
    cfg_end: float | None = None
    start_percent: float = 0.0
    end_percent: float = 1.0
    per_image: bool = True
    image_cfg: float = 1.0

    def __post_init__(self) -> None:
        for name in ("cfg", "cfg_rescale", "cfg_end", "start_percent", "end_percent", "image_cfg"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InvalidSettings(f"guidance {name} must be a finite number, got {value}")
        _ = self.interval

    @cached_property
    def interval(self) -> Interval:
        """The part of the run in which guidance acts."""
        return Interval(self.start_percent, self.end_percent)

    @property
    def changes(self) -> bool:
        """Whether it depends on the part of the run."""
        return self.cfg_end is not None or (self.start_percent, self.end_percent) != (0.0, 1.0)

    def cfg_at(self, percent: float) -> float:
        """The scale at this part of the run, 1.0 outside the interval."""
        if percent not in self.interval:
            return 1.0
        last = self.cfg if self.cfg_end is None else self.cfg_end
        return self.cfg * (1 - percent) + last * percent

    def combine(self, cond: Tensor, uncond: Tensor, percent: float, without: Tensor | None = None) -> Tensor:
        """Predictions [B, ...] -> the guided prediction at this part of the run.

        without: the prediction without prompt and images, where `image_cfg` acts.
        """
        guided = self._by_prompt(cond, uncond, percent)
        return guided if without is None else guided + (self.image_cfg - 1) * (uncond - without)

    def _by_prompt(self, cond: Tensor, uncond: Tensor, percent: float) -> Tensor:
        guided = torch.lerp(uncond, cond, self.cfg_at(percent))
        if self.cfg_rescale == 0:
            return guided
        dims = tuple(range(1 if self.per_image else 0, cond.ndim))
        ratio = cond.std(dims, keepdim=True) / (guided.std(dims, keepdim=True) + 1e-9)
        return guided * (self.cfg_rescale * ratio + (1 - self.cfg_rescale))
