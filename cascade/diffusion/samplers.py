"""Samplers: one step from a noise level to the next. A level is the factors (a, b) of x = a x0 + b epsilon.

`step(x0, epsilon, (a, b), (a_next, b_next), noise)` -> x at the next level. `noise()` gives standard normal noise of
x0's shape and is called only where the step needs it. A sampler that also uses earlier steps remembers them: its
factory makes a new one for each run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

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
        a_next, b_next = there
        sigma = self.eta * b_next * math.sqrt(max(1 - (_sigma(there) / _sigma(here)) ** 2, 0))
        x = a_next * x0 + math.sqrt(max(b_next**2 - sigma**2, 0)) * epsilon
        return x + sigma * noise() if sigma > 0 else x


def lcm(x0: Tensor, epsilon: Tensor, here: Factors, there: Factors, noise: Callable[[], Tensor]) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1; Luo et al. 2023): new noise on x0."""
    return there[0] * x0 + there[1] * noise()


@dataclass
class Multistep:
    """Second order in log sigma (sigma = b / a) with the x0 of the step before: two steps for the price of one.

    DPM-Solver++ 2M (Lu et al. 2022, algorithm 2); with `exponential` the weight of its second term is the exact
    integral (Zhang et al. 2023, "RES", eq. 16). The first step is DDIM's, and so is one after a step between equal
    noise levels, which the released schedule has in runs of many steps.
    """

    exponential: bool = False
    earlier: tuple[float, Tensor] | None = field(default=None, repr=False)

    def __call__(
        self, x0: Tensor, epsilon: Tensor, here: Factors, there: Factors, noise: Callable[[], Tensor]
    ) -> Tensor:
        h = math.log(_sigma(here) / _sigma(there))
        x = there[0] * x0 + there[1] * epsilon
        if self.earlier is not None and h > 0:
            last, old = self.earlier
            weight = 1 + math.expm1(-h) / h if self.exponential else -math.expm1(-h) / 2
            x = x + there[0] * weight * h / last * (x0 - old)
        self.earlier = (h, x0) if h > 0 else None
        return x


@dataclass
class ERSDE:
    """ER-SDE-Solver-3 (Cui et al. 2023, algorithm 3): a reverse SDE with little noise, in Taylor's terms of x0.

    Lambda is sigma = b / a. The integrals of the paper are sums of 200 points, as in the authors' code.
    """

    states: list[tuple[float, Tensor, Tensor | None]] = field(default_factory=list, repr=False)
    """Of the last two steps: lambda, x0, and the derivative of x0."""

    def __call__(
        self, x0: Tensor, epsilon: Tensor, here: Factors, there: Factors, noise: Callable[[], Tensor]
    ) -> Tensor:
        now, then = _sigma(here), _sigma(there)
        ratio, step = _spread(then) / _spread(now), then - now
        x = ratio * (x0 + now * epsilon) + (1 - ratio) * x0
        slope = None
        if self.states and self.states[-1][0] > now:
            points = [then + i * -step / POINTS for i in range(POINTS)]
            slope = (x0 - self.states[-1][1]) / (now - self.states[-1][0])
            integral = sum(1 / _spread(point) for point in points) * -step / POINTS
            x = x + (step + integral * _spread(then)) * slope
            before = self.states[-1][2]
            if before is not None:
                bend = (slope - before) / ((now - self.states[-2][0]) / 2)
                integral = sum((point - now) / _spread(point) for point in points) * -step / POINTS
                x = x + (step**2 / 2 + integral * _spread(then)) * bend
        self.states = [*self.states[-1:], (now, x0, slope)]
        spread = math.sqrt(max(then**2 - (now * ratio) ** 2, 0))
        return there[0] * (x + spread * noise() if spread > 0 else x)


POINTS = 200


def _sigma(factors: Factors) -> float:
    return factors[1] / factors[0]


def _spread(sigma: float) -> float:
    """The paper's noise scale function ER-SDE 5."""
    return sigma * (math.exp(sigma**0.3) + 10)


SAMPLERS: Registry[Step] = Registry(
    "sampler",
    {
        "ddpm": lambda: DDIM(eta=1.0),
        "ddim": DDIM,
        "lcm": lambda: lcm,
        "dpmpp_2m": Multistep,
        "res_multistep": lambda: Multistep(exponential=True),
        "er_sde": ERSDE,
    },
)
