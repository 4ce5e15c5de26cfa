"""Samplers: one step from a noise level to the next. A level is the factors (a, b) of x = a x0 + b epsilon.

`step(x0, epsilon, (a, b), (a_next, b_next), noise)` -> x at the next level. `noise()` gives standard normal noise of
x0's shape and is called only where the step needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .registry import Registry

Factors = tuple[float, float]
Step = Callable[[Tensor, Tensor, Factors, Factors, Callable[[], Tensor]], Tensor]


@dataclass(frozen=True)
class DDIM:
    """Song et al. 2021, eq. 12 and 16: eta = 0 is deterministic, eta = 1 ancestral sampling (DDPM, Ho et al. 2020)."""

    eta: float = 0.0

    def __call__(
        self, x0: Tensor, epsilon: Tensor, here: Factors, there: Factors, noise: Callable[[], Tensor]
    ) -> Tensor:
        (a, b), (a_next, b_next) = here, there
        sigma = self.eta * b_next / b * math.sqrt(max(1 - (a / a_next) ** 2, 0))
        x = a_next * x0 + math.sqrt(max(b_next**2 - sigma**2, 0)) * epsilon
        return x + sigma * noise() if sigma > 0 else x


def lcm(x0: Tensor, epsilon: Tensor, here: Factors, there: Factors, noise: Callable[[], Tensor]) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1; Luo et al. 2023): new noise on x0."""
    return there[0] * x0 + there[1] * noise()


SAMPLERS: Registry[Step] = Registry("sampler", {"ddpm": lambda: DDIM(eta=1.0), "ddim": DDIM, "lcm": lambda: lcm})
