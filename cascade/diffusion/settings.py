"""How one stage is sampled, and its noise levels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from ..errors import InvalidSettings
from .caching import Cache
from .guidance import Guidance
from .process import RELEASED_DIFFUSION, Diffusion
from .samplers import SAMPLERS, Factors, Step
from .schedules import SCHEDULES, Schedule


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How one stage is sampled.

    steps: steps of equal time t from the start of the run to its end.
    guidance: see `Guidance`.
    shift: see `Schedule.__call__`; higher for larger images. Released: 2 for Stage C, 1 for Stage B.
    sampler_name: a name of `SAMPLERS`, or what their factories make.
    schedule: a name of `SCHEDULES`, or what their factories make; None: the one of the diffusion process.
    start_percent, end_percent: the part of the schedule from noise (0) to a clean image (1) that is sampled. Image to
        image with a strength s starts at 1 - s.
    cache: see `Cache`; None computes everything at every step.

    Raises InvalidSettings for steps < 1, shift <= 0 and parts other than 0 <= start_percent < end_percent <= 1.
    """

    steps: int
    guidance: Guidance = field(default_factory=Guidance)
    shift: float = 1.0
    sampler_name: str | Step = "ddpm"
    schedule: str | Schedule | None = None
    start_percent: float = 0.0
    end_percent: float = 1.0
    cache: Cache | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InvalidSettings(f"steps must be at least 1, got {self.steps}")
        if not self.shift > 0:
            raise InvalidSettings(f"shift must be above 0, got {self.shift}")
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise InvalidSettings(
                "a run must have 0 <= start_percent < end_percent <= 1, got start_percent "
                f"{self.start_percent:g}, end_percent {self.end_percent:g}"
            )

    def with_strength(self, strength: float) -> SamplingSettings:
        """For image to image: 1 samples from pure noise, less starts from the image with less noise."""
        return replace(self, start_percent=1 - strength)

    @property
    def step(self) -> Step:
        """The sampler's step. Raises KeyError for an unknown name."""
        return SAMPLERS.resolve(self.sampler_name)

    def noise_levels(self, diffusion: Diffusion = RELEASED_DIFFUSION) -> list[NoiseLevel]:
        """The level of each step, noisiest first. Raises KeyError for an unknown schedule."""
        start, part = self.start_percent, self.end_percent - self.start_percent
        percents = [start + part * i / self.steps for i in range(self.steps)]
        # On the CPU in float64; the results are plain numbers.
        times = torch.tensor([1 - percent for percent in percents], dtype=torch.float64)
        log_snr = SCHEDULES.resolve(self.schedule or diffusion.schedule)(times, self.shift)
        a, b = diffusion.scaling(log_snr)
        rows = zip(percents, log_snr.tolist(), a.tolist(), b.tolist(), diffusion.noise_condition(log_snr).tolist())
        return [NoiseLevel(*row) for row in rows]


class NoiseLevel(NamedTuple):
    """One noise level of a run.

    percent: 0 at the start of sampling (noise), 1 at its end. log_snr: log(a^2 / b^2). a, b: x = a x0 + b epsilon.
    r: the network's noise condition.
    """

    percent: float
    log_snr: float
    a: float
    b: float
    r: float

    @property
    def factors(self) -> Factors:
        return self.a, self.b
