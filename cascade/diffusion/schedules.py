"""Noise schedules: log_snr = log(a^2 / b^2) as a falling function of the time t in [0, 1] (t = 0 clean, t = 1 noise).

Schedules for training are such functions too: the quantile function of a distribution of log_snr, so that a uniform t
gives samples of it. Training therefore uses `t = 1 - torch.rand(batch)` with every schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .registry import Registry


def as_float(value: Tensor | float) -> Tensor:
    """Float32 at least: in half precision neighboring times are equal."""
    value = torch.as_tensor(value)
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The piecewise linear function through the points (xs, ys) at x; constant outside. xs ascending, 1-D."""
    xs, ys = xs.to(x), ys.to(x)
    x = x.clamp(xs[0], xs[-1]).contiguous()
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    left = right - 1
    return torch.lerp(ys[left], ys[right], (x - xs[left]) / (xs[right] - xs[left]))


class Schedule:
    """Base of all schedules: `schedule(t, shift=1.0)` -> log_snr of t's shape, float32 or float64."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log_snr without shift, t already a float tensor in [0, 1]."""
        raise NotImplementedError

    @cached_property
    def limits(self) -> tuple[float, float]:
        """log_snr at t = 1 and at t = 0."""
        low, high = self.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
        return low, high

    def __call__(self, t: Tensor | float, shift: float = 1.0) -> Tensor:
        """log_snr - 2 log(shift), kept within the unshifted limits.

        A shift of s is for an image s times as wide (Hoogeboom et al. 2023, "simple diffusion", section 3.1).
        """
        if not shift > 0:
            raise ValueError(f"shift must be above 0, got {shift}")
        return (self.log_snr(as_float(t).clamp(0, 1)) - 2 * math.log(shift)).clamp(*self.limits)

    def percent(self, log_snr: float, shift: float = 1.0) -> float:
        """The part of a run with this shift that is done at a noise level: 0 at its start (noise), 1 at its end."""
        if log_snr <= self.limits[0] + 1e-4:
            return 0.0
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            below = float(self(torch.tensor(1 - middle, dtype=torch.float64), shift)) < log_snr
            low, high = (middle, high) if below else (low, middle)
        return low

    def learn(self, log_snr: Tensor, loss: Tensor) -> None:
        """Update with the losses [B] at log_snr [B]; only adaptive schedules use them."""

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned; empty for fixed schedules."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """a^2 = f(t) / f(0), f(t) = cos^2(pi/2 (t + s)/(1 + s)) (Nichol & Dhariwal 2021, eq. 17), clamped. As released."""

    s: float = 0.008
    clamp: tuple[float, float] = (1e-4, 0.9999)

    def log_snr(self, t: Tensor) -> Tensor:
        at_zero = math.cos(math.pi / 2 * self.s / (1 + self.s)) ** 2
        a_squared = torch.cos(math.pi / 2 * (t + self.s) / (1 + self.s)) ** 2 / at_zero
        return torch.logit(a_squared.clamp(*self.clamp))

    def inverse(self, log_snr: Tensor, shift: float = 1.0) -> Tensor:
        """The t of these noise levels, without the clamp: t of log_snr's shape, outside [0, 1] beyond the clamp."""
        log_snr = log_snr + 2 * math.log(shift)
        offset = math.pi / 2 * self.s / (1 + self.s)
        # The angle arccos(a cos(offset)) from its sine and cosine, because arccos is inexact near 1.
        a_squared = torch.sigmoid(log_snr)
        sine = (torch.sigmoid(-log_snr) + a_squared * math.sin(offset) ** 2).sqrt()
        angle = torch.atan2(sine, a_squared.sqrt() * math.cos(offset))
        return angle * (2 / math.pi) * (1 + self.s) - self.s

    def percent(self, log_snr: float, shift: float = 1.0) -> float:
        """The part of a run with this shift that is done at a noise level: 0 at its start (noise), 1 at its end."""
        noisiest, _ = self.limits
        if log_snr <= noisiest + 1e-4:  # several t have the clamped level; a run starts there
            return 0.0
        t = self.inverse(torch.tensor(log_snr, dtype=torch.float64), shift).item()
        return 1 - min(max(t, 0.0), 1.0)


@dataclass(frozen=True)
class Cosine2Schedule(Schedule):
    """log_snr = -2 log tan of an angle linear in t, between two bounds (Hoogeboom et al. 2023, appendix)."""

    bounds: tuple[float, float] = (-15.0, 15.0)

    def log_snr(self, t: Tensor) -> Tensor:
        first, last = (math.atan(math.exp(-bound / 2)) for bound in (self.bounds[1], self.bounds[0]))
        return -2 * torch.log(torch.tan(first + t * (last - first)))


@dataclass(frozen=True)
class SqrtSchedule(Schedule):
    """a^2 = 1 - sqrt(t + s) (Li et al. 2022, "Diffusion-LM"), clamped."""

    s: float = 1e-4
    clamp: tuple[float, float] = (1e-4, 0.9999)

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.logit((1 - torch.sqrt(t + self.s)).clamp(*self.clamp))


@dataclass(frozen=True)
class RectifiedFlowSchedule(Schedule):
    """a = 1 - t, b = t (Liu et al. 2022): log_snr = 2 log((1 - t)/t), clamped."""

    bounds: tuple[float, float] = (-15.0, 15.0)

    def log_snr(self, t: Tensor) -> Tensor:
        return (2 * (torch.log1p(-t) - torch.log(t))).clamp(*self.bounds)


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """sigma^(1/rho) linear in t (Karras et al. 2022, eq. 5); log_snr = -2 log sigma."""

    sigma: tuple[float, float] = (0.002, 80.0)
    rho: float = 7.0

    def log_snr(self, t: Tensor) -> Tensor:
        low, high = (sigma ** (1 / self.rho) for sigma in self.sigma)
        return -2 * self.rho * torch.log(high + (1 - t) * (low - high))


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """log_snr linear in t between two bounds."""

    bounds: tuple[float, float] = (-10.0, 10.0)

    def log_snr(self, t: Tensor) -> Tensor:
        low, high = self.bounds
        return high + t * (low - high)


def stable_diffusion_table(beta: tuple[float, float], steps: int) -> tuple[Tensor, Tensor]:
    """Stable Diffusion's noise levels, [steps + 1] each: t, and a^2 = prod(1 - beta) with sqrt(beta) linear in t."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    first, last = (math.sqrt(value) for value in beta)
    return t, torch.cumprod(1 - torch.lerp(torch.full_like(t, first), torch.full_like(t, last), t) ** 2, dim=0)


@dataclass(frozen=True)
class StableDiffusionSchedule(Schedule):
    """Stable Diffusion 1 and 2 (Rombach et al. 2022), linear between its discrete steps."""

    beta: tuple[float, float] = (0.00085, 0.012)
    steps: int = 1000

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.logit(interpolate(t, *self.table))

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        return stable_diffusion_table(self.beta, self.steps)


@dataclass(frozen=True)
class EDMTrainSchedule(Schedule):
    """log sigma normal (Karras et al. 2022, table 1), so log_snr ~ N(2 mean, (2 std)^2), as its quantile function.

    The paper's log sigma has mean -1.2, which is `mean=1.2` here. The default has the reference's sign.
    """

    mean: float = -1.2
    std: float = 1.2

    def log_snr(self, t: Tensor) -> Tensor:
        # 1e-6 keeps the tails finite: +-4.75 deviations.
        return 2 * self.mean - 2 * self.std * torch.special.ndtri(t.clamp(1e-6, 1 - 1e-6))


@dataclass(frozen=True)
class AdaptiveSchedule(Schedule):
    """More samples where the loss is high: the density of a log_snr bucket is its running mean loss.

    Uniform until `learn` was called. `decay` is the weight of the old mean.
    """

    bounds: tuple[float, float] = (-10.0, 10.0)
    buckets: int = 100
    decay: float = 0.99
    losses: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", torch.ones(self.buckets))

    @cached_property
    def limits(self) -> tuple[float, float]:
        return self.bounds

    def log_snr(self, t: Tensor) -> Tensor:
        edges = torch.linspace(*self.bounds, self.buckets + 1, dtype=torch.float64)
        # A bucket without loss keeps a small probability, or it would never be sampled again.
        density = self.losses.double().clamp(min=1e-6 * self.losses.double().mean().item() + 1e-30)
        cumulative = torch.cumsum(torch.cat([torch.zeros(1, dtype=torch.float64), density / density.sum()]), dim=0)
        return interpolate((1 - t).cpu().double(), cumulative, edges).to(t)

    def learn(self, log_snr: Tensor, loss: Tensor) -> None:
        low, high = self.bounds
        bucket = ((log_snr - low) / (high - low) * self.buckets).long().clamp(0, self.buckets - 1)
        running_mean(self.losses, bucket, loss, self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.losses.copy_(state["losses"])


@dataclass(frozen=True)
class InterpolatedSchedule(Schedule):
    """t * noisy(t) + (1 - t) * clean(t), each with its own shift (Hoogeboom et al. 2023, section 3.1)."""

    noisy: Schedule = CosineSchedule()
    clean: Schedule = CosineSchedule()
    shifts: tuple[float, float] = (1.0, 1.0)

    def log_snr(self, t: Tensor) -> Tensor:
        t = t.clamp(1e-7, 1 - 1e-7)  # an unbounded part would give 0 * infinity at the ends
        return torch.lerp(self.clean(t, self.shifts[1]), self.noisy(t, self.shifts[0]), t)


def running_mean(means: Tensor, bucket: Tensor, value: Tensor, decay: float) -> None:
    """means[bucket] <- decay * old + (1 - decay) * mean of the values [B] there, in place; other buckets stay.

    Values that are not finite are ignored: one overflow must not destroy the means.
    """
    bucket, value = bucket.detach().cpu().reshape(-1), value.detach().to("cpu", means.dtype).reshape(-1)
    good = torch.isfinite(value)
    bucket, value = bucket[good], value[good]
    total = torch.zeros_like(means).index_add_(0, bucket, value)
    count = torch.zeros_like(means).index_add_(0, bucket, torch.ones_like(value))
    hit = count > 0
    means[hit] = decay * means[hit] + (1 - decay) * total[hit] / count[hit]


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    {
        "cosine": CosineSchedule,
        "cosine2": Cosine2Schedule,
        "sqrt": SqrtSchedule,
        "rectified_flow": RectifiedFlowSchedule,
        "edm": EDMSchedule,
        "linear": LinearSchedule,
        "stable_diffusion": StableDiffusionSchedule,
        "edm_train": EDMTrainSchedule,
        "adaptive": AdaptiveSchedule,
        "interpolated": InterpolatedSchedule,
    },
)
