"""Scalings: the factors (a, b) of a noisy image x = a x0 + b epsilon with a^2 / b^2 = exp(log_snr)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .registry import Registry

Scaling = Callable[[Tensor], tuple[Tensor, Tensor]]


def vp(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Variance preserving, a^2 + b^2 = 1: a^2 = sigmoid(log_snr) (Kingma et al. 2021, "VDM"). The released setting."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def lerp(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """A straight line from image to noise, a + b = 1: a = sigmoid(log_snr / 2) (Liu et al. 2022)."""
    return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)


SCALINGS: Registry[Scaling] = Registry("scaling", {"vp": lambda: vp, "lerp": lambda: lerp})
