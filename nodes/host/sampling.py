"""Sampling through the host: a plan's noise levels, guidance and noise, with any of the host's samplers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from itertools import count
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...cascade.diffusion import RELEASED_DIFFUSION, Diffusion, Guidance, Inverting, SamplingSettings
from ...cascade.pipelines import StagePlan, Start, Tiles, compression_warning, stage_b_size
from . import checks, tiling
from .compat import fill_table

OWN_SAMPLERS = ("ddpm", "ddim", "lcm")
"""Samplers that can step from a noise level to an equal one, which the released schedule has in runs of many steps (at
shift 2 from 78 on). Multistep samplers divide by the length of a step; a step of no length changes nothing."""


def sampler_names() -> list[str]:
    """The names of the host's samplers, Stable Cascade's own first."""
    return list(dict.fromkeys([*OWN_SAMPLERS, *comfy.samplers.KSampler.SAMPLERS]))


def sigma_of(log_snr: float) -> float:
    """The host's noise level: the standard deviation of the noise where the image has the factor 1."""
    return math.exp(-log_snr / 2)


def _log_snr(sigma: float) -> Tensor:
    return torch.tensor(-2 * math.log(sigma), dtype=torch.float64)


def sigmas(settings: SamplingSettings, diffusion: Diffusion = RELEASED_DIFFUSION) -> Tensor:
    """The host's SIGMAS [steps + 1] of the process's schedule; the last is 0."""
    return torch.tensor([*(sigma_of(level.log_snr) for level in settings.noise_levels(diffusion)), 0.0])


def process_of(model_sampling: Any) -> Diffusion:
    """What a model was trained for, from its noise levels."""
    return getattr(model_sampling, "diffusion", RELEASED_DIFFUSION)


def percent_of(sigma: float, model_sampling: Any) -> float:
    """The part of a run with this model that is done at a noise level: 0 at its start, 1 at its end."""
    schedule = process_of(model_sampling).schedule
    return schedule.percent(-2 * math.log(max(sigma, 1e-6)), getattr(model_sampling, "shift", 1.0))


class CascadeGuidance(comfy.samplers.CFGGuider):
    """The library's guidance as a GUIDER."""

    guidance = Guidance()

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = {}, seed: Any = None) -> Tensor:  # noqa: B006
        percent = 0.0
        if self.guidance.changes:
            # Reading the noise level waits for a graphics card.
            percent = percent_of(float(timestep[0]), self.inner_model.model_sampling)
        # A guidance function that another node set on the model is used instead of ours.
        options = {"sampler_cfg_function": self._function(percent), **model_options}
        negative, positive = self.conds.get("negative"), self.conds.get("positive")
        cfg = self.guidance.cfg_at(percent)
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, cfg, model_options=options, seed=seed
        )

    def _function(self, percent: float) -> Callable[[dict[str, Any]], Tensor]:
        def combine(args: dict[str, Any]) -> Tensor:
            # Noise predictions, times sigma: both have the same factor, so rescaling is not changed by it.
            if self.guidance.cfg_at(percent) == 1:
                return args["cond"]
            return self.guidance.combine(args["cond"], args["uncond"], percent)

        return combine


def guider(model: Any, positive: Any, negative: Any, guidance: Guidance) -> CascadeGuidance:
    """A GUIDER with both conditionings. Raises CascadeError for a Stage B without Stage C's latent."""
    checks.conditioned(model, positive)
    made = CascadeGuidance(model)
    made.set_conds(positive, negative)
    made.set_cfg(guidance.cfg)
    made.guidance = guidance
    return made


def sample_stage_c(
    model: Any, positive: Any, negative: Any, latent: Any, seed: int, settings: SamplingSettings, as_released: bool
) -> dict[str, Any]:
    """Stage C's LATENT, from a LATENT to start from.

    as_released: see `Start`.

    Raises CascadeError for a model or latent of another kind, and for a result that is not finite.
    """
    checks.model(model, "Stage C")
    samples = checks.latents(latent, "Stage C")
    plan = StagePlan(
        stage="stage_c",
        size=samples.shape[1:],
        seeds=seeds_of(latent, len(samples), seed),
        settings=settings,
        cond=positive,
        uncond=negative,
        start=Start(latents=samples, mask=latent.get("noise_mask"), as_released=as_released),
    )
    return with_samples(latent, checks.finite(run(model, plan), "Stage C"))


def sample_stage_b(
    model: Any,
    positive: Any,
    negative: Any,
    stage_c: Any,
    latent: Any | None,
    seed: int,
    settings: SamplingSettings,
    tiles: Callable[[Tensor], Tiles | None],
) -> dict[str, Any]:
    """Stage B's LATENT, from Stage C's LATENT and one to start from; None: an empty one of the size of Stage C's.

    tiles: of the latents, the tiles to work in, or None.

    Raises CascadeError as `sample_stage_c`.
    """
    checks.model(model, "Stage B")
    small = checks.latents(stage_c, "Stage C")
    if latent is None:
        latent = _empty_stage_b(stage_c, small)
    samples = repeated(checks.latents(latent, "Stage B"), len(small))
    if warning := compression_warning(small.shape, samples.shape):
        checks.warn(warning)
    plan = StagePlan(
        stage="stage_b",
        size=samples.shape[1:],
        seeds=seeds_of(latent, len(samples), seed),
        settings=settings,
        cond=with_stage_c(positive, small),
        uncond=with_stage_c(negative, None),
        start=Start(latents=samples, mask=latent.get("noise_mask")),
        tiles=tiles(samples),
    )
    return with_samples(latent, checks.finite(run(model, plan), "Stage B"))


def run(model: Any, plan: StagePlan[Any], inverting: Inverting | None = None) -> Tensor:
    """A plan through the host's sampler: the samples [B, c, h, w]. Its conditions are CONDITIONINGs.

    Each image has the noise of its own seed: it is the same, to rounding, alone, in a batch, and from the library.

    inverting: finds the noise of the run, in the place of the plan's.
    """
    if plan.start is None:
        raise ValueError("the host's samplers start from latents: give the plan a start")
    if tiles := plan.acting_tiles:
        model = tiling.tiled(model, tiles)
    guided = guider(shifted(model, plan.settings.shift), plan.cond, plan.uncond, plan.settings.guidance)
    noise = plan.noise.start(*plan.size)
    diffusion = process_of(checks.schedule(model))
    levels = sigmas(plan.settings, diffusion)
    if plan.settings.sampler_name not in OWN_SAMPLERS:
        levels = torch.unique_consecutive(levels)
    on_step = latent_preview.prepare_callback(guided.model_patcher, len(levels) - 1)
    if inverting is None:
        noise_of = partial(plan.noise, noise.to(guided.model_patcher.load_device))
    else:
        on_step, noise_of = _watched(on_step, inverting, levels, diffusion)
    result = guided.sample(
        noise,
        plan.start.latents,
        _sampler(plan, diffusion, noise_of),
        levels,
        denoise_mask=plan.start.mask,
        callback=on_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        # For noise that the host generates itself, in samplers that do not accept ours.
        seed=plan.seeds[0],
    )
    return plan.completed(result.to(comfy.model_management.intermediate_device()))


def with_samples(latent: dict[str, Any], samples: Tensor) -> dict[str, Any]:
    """A LATENT of these samples, with the mask and the seeds of another one."""
    kept = {name: value for name, value in latent.items() if name in ("noise_mask", "batch_index")}
    return {**kept, "samples": samples}


def seeds_of(latent: dict[str, Any], images: int, seed: int) -> Sequence[int]:
    """Image i has seed + i, or seed + the index that the host stored for it."""
    places = latent.get("batch_index") or range(images)
    return [seed + place for place in places]


def _watched(
    on_step: Callable[..., Any], inverting: Inverting, levels: Tensor, diffusion: Diffusion
) -> tuple[Callable[..., Any], Callable[[int], Tensor]]:
    """A callback of the host that tells an inversion about each step, and the noise of a step that it finds."""
    state = inverting.image

    def watch(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        nonlocal state
        # The host's x is the network's divided by the factor a of the level.
        state = x * diffusion.scaling(_log_snr(float(levels[step])))[0].item()
        inverting.on_step(step, total, x0)
        on_step(step, x0, x, total)

    return watch, lambda step: inverting(state, step)


def _sampler(plan: StagePlan[Any], diffusion: Diffusion, noise_of: Callable[[int], Tensor]) -> Any:
    """The plan's sampler; if it adds noise between steps, it uses this noise, step by step."""
    made = comfy.samplers.sampler_object(plan.settings.sampler_name)
    if "noise_sampler" in inspect.signature(made.sampler_function).parameters:
        steps = count()
        options = {**made.extra_options, "noise_sampler": lambda *_: noise_of(next(steps))}
        made = comfy.samplers.KSAMPLER(made.sampler_function, options, made.inpaint_options)
    if plan.start is not None and plan.start.as_released:
        return _starting_at(sigma_of(plan.start_log_snr(diffusion)), diffusion, made)
    return made


def _starting_at(sigma: float, diffusion: Diffusion, sampler: Any) -> Any:
    """The sampler, for latents with another noise level than that of its first step."""
    function = sampler.sampler_function

    @wraps(function)
    def from_other_level(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
        x0, first = model.latent_image, float(sigmas[0])
        noised = x0 + (x - x0) * (sigma / first)
        # The host's x is the network's divided by the factor a of a level, which is that of the first step.
        now, then = (diffusion.scaling(_log_snr(each))[0].item() for each in (sigma, first))
        return function(model, noised * (now / then), sigmas, *args, **kwargs)

    return comfy.samplers.KSAMPLER(from_other_level, sampler.extra_options, sampler.inpaint_options)


def shifted(model: Any, shift: float) -> Any:
    """The model with this shift, from which the host computes a run's percentages. The model itself if it has it."""
    current = checks.schedule(model)
    if math.isclose(current.shift, shift):
        return model
    # The host's own node computes the table one level at a time, which takes longer than a step.
    sampling = copy.deepcopy(current)
    sampling.shift = shift
    fill_table(sampling)
    changed = model.clone()
    changed.add_object_patch("model_sampling", sampling)
    return changed


def _empty_stage_b(stage_c: dict[str, Any], samples: Tensor) -> dict[str, Any]:
    """Stage B's empty latent for the image whose Stage C latent [B, 16, h, w] this is."""
    kept = {name: stage_c[name] for name in ("batch_index",) if name in stage_c}
    return {**kept, "samples": samples.new_zeros(len(samples), 4, *stage_b_size(samples.shape))}


def repeated(samples: Tensor, batch: int) -> Tensor:
    """Samples for a batch of this size; a larger batch of their own stays."""
    return samples if len(samples) >= batch else comfy.utils.repeat_to_batch_size(samples, batch)


def with_stage_c(conditioning: Any, samples: Tensor | None) -> Any:
    """The conditioning with Stage C's latents for Stage B, or without any."""
    found = []
    for embedding, extras in conditioning:
        kept = {name: value for name, value in extras.items() if name != "stable_cascade_prior"}
        found.append([embedding, kept if samples is None else {**kept, "stable_cascade_prior": samples}])
    return found
