"""Noise conditions: the number r [B] from which the network reads the noise level log_snr [B]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .registry import Registry
from .schedules import CosineSchedule, interpolate, stable_diffusion_table

NoiseCondition = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CosineT:
    """The t at which the cosine schedule, unclamped and without shift, has this log_snr. The released setting."""

    s: float = 0.008

    def __call__(self, log_snr: Tensor) -> Tensor:
        return CosineSchedule(self.s).inverse(log_snr)


def edm(log_snr: Tensor) -> Tensor:
    """log(sigma) / 4 (Karras et al. 2022, table 1, c_noise)."""
    return -log_snr / 8


def sigmoid(log_snr: Tensor) -> Tensor:
    """b^2 of the variance preserving scaling."""
    return torch.sigmoid(-log_snr)


def log_snr_itself(log_snr: Tensor) -> Tensor:
    return log_snr


@dataclass(frozen=True)
class EDMSigma:
    """sigma = exp(-log_snr / 2), times the deviation of the data."""

    sigma_data: float = 1.0

    def __call__(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / 2) * self.sigma_data


def rectified_flow(log_snr: Tensor) -> Tensor:
    """The factor a of the lerp scaling, so 1 - t of rectified flows: the direction is the reference's."""
    return torch.sigmoid(log_snr / 2)


@dataclass(frozen=True)
class StableDiffusionT:
    """The t in [0, 1] of `StableDiffusionSchedule` with this log_snr."""

    beta: tuple[float, float] = (0.00085, 0.012)
    steps: int = 1000

    def __call__(self, log_snr: Tensor) -> Tensor:
        t, a_squared = self.table
        return interpolate(torch.sigmoid(log_snr), a_squared.flip(0), t.flip(0))

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        return stable_diffusion_table(self.beta, self.steps)


@dataclass(frozen=True)
class Discrete:
    """Another condition, its range cut into whole steps: int64."""

    condition: NoiseCondition = CosineT()
    steps: int = 1000
    continuous: tuple[float, float] = (0.0, 1.0)

    def __call__(self, log_snr: Tensor) -> Tensor:
        low, high = self.continuous
        return ((self.condition(log_snr) - low) / (high - low) * self.steps).long()


NOISE_CONDITIONS: Registry[NoiseCondition] = Registry(
    "noise condition",
    {
        "cosine_t": CosineT,
        "edm": lambda: edm,
        "sigmoid": lambda: sigmoid,
        "log_snr": lambda: log_snr_itself,
        "edm_sigma": EDMSigma,
        "rectified_flow": lambda: rectified_flow,
        "stable_diffusion": StableDiffusionT,
        "discrete": Discrete,
    },
)
