"""The sampling loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .guidance import Guidance
from .noise import Noise, SeededNoise
from .process import RELEASED_DIFFUSION, Diffusion
from .samplers import SAMPLERS, Step
from .schedules import SCHEDULES, Schedule

NetworkArguments = Mapping[str, Any]
"""Keyword arguments of the network: name -> tree (tensor, batch first; None; tuple, list or NamedTuple of trees)."""

DEFAULT_GUIDANCE = Guidance()


class Network(Protocol):
    """x [B, ...], r [B] and the conditions -> the prediction [B, ...]."""

    def __call__(self, x: Tensor, r: Tensor, **cond: Any) -> Tensor: ...


class OnStep(Protocol):
    """Called after step i (0 to n - 1) with the x0 predicted there; raise in it to stop the run."""

    def __call__(self, i: int, n: int, x0: Tensor, /) -> Any: ...


@dataclass(frozen=True)
class Kept:
    """What a run leaves as it is, in whole or in part.

    x0: [B, ...]. mask: [B, 1, ...], 0 where x0 is kept, 1 where all is drawn anew, soft in between. epsilon: the noise
    of the run's start, [B, ...]: around what is drawn, the network sees x0 with as much of it as the rest has.
    """

    x0: Tensor
    mask: Tensor
    epsilon: Tensor

    def seen(self, x: Tensor, a: float, b: float) -> Tensor:
        """x at the level (a, b) with what is kept in its place."""
        return self.mask * x + (1 - self.mask) * (a * self.x0 + b * self.epsilon)

    def drawn(self, x0: Tensor) -> Tensor:
        """A predicted x0 with what is kept in its place."""
        return self.mask * x0 + (1 - self.mask) * self.x0


@torch.no_grad()
def sample(
    model: Network,
    x: Tensor,
    *,
    cond: NetworkArguments,
    uncond: NetworkArguments | None = None,
    steps: int,
    sampler: str | Step = "ddpm",
    schedule: str | Schedule | None = None,
    shift: float = 1.0,
    t_start: float = 1.0,
    t_end: float = 0.0,
    guidance: Guidance = DEFAULT_GUIDANCE,
    noise: Noise | None = None,
    kept: Kept | None = None,
    on_step: OnStep | None = None,
    diffusion: Diffusion = RELEASED_DIFFUSION,
) -> Tensor:
    """Take x [B, ...], noised to t_start, down to t_end in `steps` equal steps of t; the x0 predicted by the last step.

    model: called with x in the dtype given and r [B] in float32; the arithmetic in between is float32 at least.
    cond, uncond: see `NetworkArguments`. One call of 2 B where both have the same shapes, else two calls. Without
        `uncond`, or where the guidance scale is 1, only the conditional call is made.
    sampler, schedule: a name of `SAMPLERS`, `SCHEDULES`, or what their factories make; default schedule: diffusion's.
    noise: (like, step) -> standard normal noise. The default draws each image's noise from a seed made of its x; give
        `SeededNoise(seeds)` for seeds of your own.
    kept: see `Kept`; None where all is drawn.
    on_step: see `OnStep`.
    diffusion: how the network was trained.

    Raises ValueError for steps < 1 or times other than 0 <= t_end < t_start <= 1, KeyError for an unknown name.
    """
    times = step_times(steps, t_start, t_end)
    step = SAMPLERS.resolve(sampler)
    noise = SeededNoise.of(x) if noise is None else noise
    # The levels of all steps at once, on the CPU in float64: plain numbers from here on.
    log_snr = SCHEDULES.resolve(schedule or diffusion.schedule)(torch.tensor(times, dtype=torch.float64), shift)
    a, b = (factor.tolist() for factor in diffusion.scaling(log_snr))
    rs = diffusion.noise_condition(log_snr)
    rs = (rs.float() if rs.is_floating_point() else rs).to(x.device)

    predict = GuidedModel(model, cond, uncond, guidance, len(x))
    state = x0 = x.to(torch.promote_types(x.dtype, torch.float32))
    for i in range(steps):
        seen = state if kept is None else kept.seen(state, a[i], b[i])
        prediction = predict(seen.to(x.dtype), rs[i], times[i]).to(state.dtype)
        level = (log_snr[i].item(), a[i], b[i])
        x0 = diffusion.target.x0(seen, prediction, *level)
        x0 = x0 if kept is None else kept.drawn(x0)
        if on_step is not None:
            on_step(i, steps, x0.to(x.dtype))
        if i + 1 < steps:
            # From x0 and the state where a part of x0 is not the network's.
            epsilon = (
                diffusion.target.epsilon(state, prediction, *level) if kept is None else (state - a[i] * x0) / b[i]
            )
            state = step(x0, epsilon, (a[i], b[i]), (a[i + 1], b[i + 1]), partial(noise, state, i))
    return x0.to(x.dtype)


def step_times(steps: int, t_start: float, t_end: float) -> list[float]:
    """steps + 1 equally spaced times from t_start down to t_end. ValueError as for `sample`."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= t_end < t_start <= 1:
        raise ValueError(f"times must be 0 <= t_end < t_start <= 1, got t_start {t_start}, t_end {t_end}")
    return [t_start + (t_end - t_start) * i / steps for i in range(steps + 1)]


class GuidedModel:
    """A network with its conditions and guidance: (x [B, ...], r scalar, t) -> prediction [B, ...]."""

    def __init__(
        self, model: Network, cond: NetworkArguments, uncond: NetworkArguments | None, guidance: Guidance, batch: int
    ) -> None:
        self.model = model
        self.cond, self.uncond = cond, uncond
        self.guidance = guidance
        self.both = None if uncond is None else join_arguments(cond, uncond, batch)

    def __call__(self, x: Tensor, r: Tensor, t: float) -> Tensor:
        rs = r.expand(len(x))
        if self.uncond is None or self.guidance.scale_at(t) == 1:
            return self.model(x, rs, **self.cond)
        if self.both is None:
            positive, negative = self.model(x, rs, **self.cond), self.model(x, rs, **self.uncond)
        else:
            positive, negative = self.model(torch.cat([x, x]), r.expand(2 * len(x)), **self.both).chunk(2)
        precise = torch.promote_types(positive.dtype, torch.float32)
        return self.guidance.combine(positive.to(precise), negative.to(precise), t)


class Unjoinable(Exception):
    """Two trees of conditions have no common batch."""


def join_arguments(cond: NetworkArguments, uncond: NetworkArguments, batch: int) -> NetworkArguments | None:
    """Both as one batch, cond first; None where structure, shapes or dtypes differ or a tensor is not of this batch."""
    if cond.keys() != uncond.keys():
        return None
    try:
        return {name: join(tree, uncond[name], batch) for name, tree in cond.items()}
    except Unjoinable:
        return None


def join(first: Any, second: Any, batch: int) -> Any:
    """Two trees of equal structure, leaf by leaf. Raises Unjoinable."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        like = (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)
        if not like or first.shape[:1] != (batch,):
            raise Unjoinable
        return torch.cat([first, second])
    if isinstance(first, (tuple, list)) and type(first) is type(second) and len(first) == len(second):
        parts = [join(a, b, batch) for a, b in zip(first, second, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if first is None and second is None:
        return None
    raise Unjoinable
