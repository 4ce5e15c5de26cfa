"""The sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .caching import CacheRun
from .guidance import Guidance
from .noise import Noise, SeededNoise
from .process import RELEASED_DIFFUSION, Diffusion
from .settings import NoiseLevel, SamplingSettings

NetworkArguments = Mapping[str, Any]
"""Keyword arguments of the network: name -> tree (tensor, batch first; None; tuple, list or NamedTuple of trees)."""

StepArguments = Callable[[float, int], NetworkArguments]
"""(percent of the run, batch of the call) -> further arguments of the network for the calls of one step."""


class Network(Protocol):
    """x [B, ...], r [B] and the conditions -> the prediction [B, ...]."""

    def __call__(self, x: Tensor, r: Tensor, **arguments: Any) -> Tensor: ...


class OnStep(Protocol):
    """Called after step i (0 to n - 1) with the x0 predicted there; raise in it to stop the run."""

    def __call__(self, i: int, n: int, x0: Tensor, /) -> Any: ...


class Steering(Protocol):
    """Changes the x0 that is predicted in step i (0 to n - 1); the noise that is predicted stays as it is."""

    def __call__(self, i: int, n: int, x0: Tensor, /) -> Tensor: ...


class Keeping(Protocol):
    """A part of the images that a run keeps as it is."""

    def noised(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """x [B, ...] at a noise level, with the kept part inserted: what the network gets."""
        ...

    def restored(self, x0: Tensor) -> Tensor:
        """A predicted x0 [B, ...] with the kept part inserted."""
        ...


@dataclass(frozen=True)
class Kept:
    """The part of an image that a run keeps.

    x0: [B, ...]. mask: [B, 1, ...], 0 where x0 is kept, 1 where all is generated, soft in between. epsilon: the noise
    of the run's start, [B, ...]: the network gets the kept part with this noise, at the level of the step.
    """

    x0: Tensor
    mask: Tensor
    epsilon: Tensor

    def noised(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """x at a noise level, with the kept part of x0 inserted."""
        return self.mask * x + (1 - self.mask) * (level.a * self.x0 + level.b * self.epsilon)

    def restored(self, x0: Tensor) -> Tensor:
        """A predicted x0 with the kept part inserted."""
        return self.mask * x0 + (1 - self.mask) * self.x0


@torch.no_grad()
def sample(
    network: Network,
    x: Tensor,
    settings: SamplingSettings,
    *,
    cond: NetworkArguments,
    uncond: NetworkArguments | None = None,
    without: NetworkArguments | None = None,
    step_arguments: StepArguments | None = None,
    noise: Noise | None = None,
    kept: Keeping | None = None,
    steering: Steering | None = None,
    on_step: OnStep | None = None,
    diffusion: Diffusion = RELEASED_DIFFUSION,
    caching: CacheRun | None = None,
) -> Tensor:
    """Sample from x [B, ...] at the first noise level of the settings to the last; returns the x0 predicted there.

    network: called with x in the dtype given and r [B] in float32; the arithmetic in between is float32 at least.
    cond, uncond: see `NetworkArguments`. One call of 2 B where both have the same shapes, else two calls. Without
        `uncond`, or where the guidance scale is 1, only the conditional call is made.
    without: the arguments without prompt and images, for `Guidance.image_cfg`; they come before the steps' arguments.
    noise: (like, step) -> standard normal noise. By default each image's seed is computed from its x; pass
        `SeededNoise(seeds)` for seeds of your own.
    kept: see `Keeping` and `Kept`; None if all is generated.
    steering: see `Steering`; None if nothing changes the predictions.
    diffusion: how the network was trained.
    caching: a fresh one of `settings.cache`. The network then also gets `around_inner`, see `Stack.denoise`.

    Raises KeyError for an unknown sampler or schedule.
    """
    step, levels = settings.step, settings.noise_levels(diffusion)
    noise = SeededNoise.of(x) if noise is None else noise
    guided = GuidedNetwork(network, cond, uncond, settings.guidance, step_arguments, len(x), caching, without)
    state = x0 = x.to(torch.promote_types(x.dtype, torch.float32))
    for i, level in enumerate(levels):
        given = state if kept is None else kept.noised(state, level)
        prediction = guided(given.to(x.dtype), level).to(state.dtype)
        x0 = diffusion.target.x0(given, prediction, level.log_snr, level.a, level.b)
        x0 = x0 if steering is None else steering(i, len(levels), x0)
        x0 = x0 if kept is None else kept.restored(x0)
        if on_step is not None:
            on_step(i, len(levels), x0.to(x.dtype))
        if level is not levels[-1]:
            epsilon = _epsilon(diffusion, state, prediction, x0, level, kept)
            state = step(x0, epsilon, level.factors, levels[i + 1].factors, partial(noise, state, i))
    return x0.to(x.dtype)


def _epsilon(
    diffusion: Diffusion, state: Tensor, prediction: Tensor, x0: Tensor, level: NoiseLevel, kept: Keeping | None
) -> Tensor:
    """The noise in the state; computed from x0 and the state if a part of x0 is kept."""
    if kept is not None:
        return (state - level.a * x0) / level.b
    return diffusion.target.epsilon(state, prediction, level.log_snr, level.a, level.b)


class GuidedNetwork:
    """A network with its conditions and guidance: (x [B, ...], level) -> prediction [B, ...]."""

    def __init__(
        self,
        network: Network,
        cond: NetworkArguments,
        uncond: NetworkArguments | None,
        guidance: Guidance,
        step_arguments: StepArguments | None,
        batch: int,
        caching: CacheRun | None = None,
        without: NetworkArguments | None = None,
    ) -> None:
        self.caching = caching
        self.without = None if guidance.image_cfg == 1 else without
        self.network, self.guidance, self.step_arguments = network, guidance, step_arguments
        self.cond, self.uncond = cond, uncond
        self.both = None if uncond is None else join_arguments(cond, uncond, batch)

    def __call__(self, x: Tensor, level: NoiseLevel) -> Tensor:
        if self.uncond is None or self.guidance.cfg_at(level.percent) == 1:
            return self._with_prompt(x, level)
        if self.caching is None:
            positive, negative = self._both(x, level)
        else:
            both, alone = partial(self._both, x, level), partial(self._with_prompt, x, level)
            positive, negative = self.caching.predictions(level.percent, both, alone)
        precise = torch.promote_types(positive.dtype, torch.float32)
        plain = None if self.without is None else self._call(x, level, self.without, "without").to(precise)
        return self.guidance.combine(positive.to(precise), negative.to(precise), level.percent, plain)

    def _with_prompt(self, x: Tensor, level: NoiseLevel) -> Tensor:
        return self._call(x, level, self.cond, "cond")

    def _both(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        if self.both is None:
            assert self.uncond is not None
            return self._with_prompt(x, level), self._call(x, level, self.uncond, "uncond")
        positive, negative = self._call(torch.cat([x, x]), level, self.both, "cond", "uncond").chunk(2)
        return positive, negative

    def _call(self, x: Tensor, level: NoiseLevel, arguments: NetworkArguments, *names: str) -> Tensor:
        r = torch.full((len(x),), level.r, device=x.device, dtype=torch.float32 if isinstance(level.r, float) else None)
        further = {} if self.step_arguments is None else dict(self.step_arguments(level.percent, len(x)))
        if self.caching is not None:
            further["around_inner"] = self.caching.around_inner(names, level.percent)
        return self.network(x, r, **{**further, **arguments})


class Unjoinable(Exception):
    """Two trees of conditions have no common batch."""


def join_arguments(cond: NetworkArguments, uncond: NetworkArguments, batch: int) -> NetworkArguments | None:
    """Both as one batch, cond first; None if structure, shapes or dtypes differ or a tensor has another batch size."""
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
