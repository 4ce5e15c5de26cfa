"""Targets: what the network predicts, and how x0 and epsilon are computed from it.

x0, epsilon, noised, prediction: [B, ...]. a and b: numbers, [B], or anything that broadcasts.
`target(x0, epsilon, log_snr, a, b)` is the training target.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .registry import Registry

Factor = Tensor | float


def expand(factor: Factor, like: Tensor) -> Factor:
    """A factor for each image, [B], as [B, 1, ...] for tensors of like's rank; others unchanged."""
    if isinstance(factor, Tensor) and factor.ndim == 1 < like.ndim:
        return factor.reshape(-1, *[1] * (like.ndim - 1))
    return factor


class Target(Protocol):
    def __call__(self, x0: Tensor, epsilon: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor: ...

    def x0(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor: ...

    def epsilon(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor: ...


class EpsilonTarget:
    """The noise (Ho et al. 2020, eq. 14). The released setting."""

    def __call__(self, x0: Tensor, epsilon: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return epsilon

    def x0(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return (noised - prediction * expand(b, noised)) / expand(a, noised)

    def epsilon(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return prediction


class X0Target:
    """The clean image."""

    def __call__(self, x0: Tensor, epsilon: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return x0

    def x0(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return prediction

    def epsilon(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return (noised - prediction * expand(a, noised)) / expand(b, noised)


class VTarget:
    """v = a epsilon - b x0 (Salimans & Ho 2022, appendix D). The inverse holds for any scaling."""

    def __call__(self, x0: Tensor, epsilon: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return expand(a, x0) * epsilon - expand(b, x0) * x0

    def x0(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        a, b = expand(a, noised), expand(b, noised)
        return (a * noised - b * prediction) / (a**2 + b**2)

    def epsilon(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        a, b = expand(a, noised), expand(b, noised)
        return (b * noised + a * prediction) / (a**2 + b**2)


class RectifiedFlowTarget:
    """The velocity epsilon - x0 (Liu et al. 2022, eq. 1). The inverse holds where a + b = 1: the lerp scaling."""

    def __call__(self, x0: Tensor, epsilon: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return epsilon - x0

    def x0(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return noised - prediction * expand(b, noised)

    def epsilon(self, noised: Tensor, prediction: Tensor, log_snr: Factor, a: Factor, b: Factor) -> Tensor:
        return noised + prediction * expand(a, noised)


TARGETS: Registry[Target] = Registry(
    "target", {"epsilon": EpsilonTarget, "x0": X0Target, "v": VTarget, "rectified_flow": RectifiedFlowTarget}
)
