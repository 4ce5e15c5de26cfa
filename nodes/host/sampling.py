"""Sampling through the host: released noise levels, released guidance, and noise that belongs to an image."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import count
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...cascade.diffusion import NOISE_CONDITIONS, RELEASED_DIFFUSION, Guidance, SeededNoise
from ...cascade.diffusion.sampling import step_times
from ...cascade.pipelines.sizes import STAGE_B_FACTOR, STAGE_C_FACTOR


def samplers() -> list[str]:
    """The names of the host's samplers, Stable Cascade's own first."""
    return list(dict.fromkeys(["ddpm", "ddim", "lcm", *comfy.samplers.KSampler.SAMPLERS]))


def released_sigmas(steps: int, shift: float, t_start: float = 1.0, t_end: float = 0.0) -> Tensor:
    """The host's SIGMAS [steps + 1] for `steps` equal steps of t from t_start towards t_end; the last is 0.

    sigma = exp(-log_snr / 2), the deviation of the noise where the image has the factor 1.
    """
    times = torch.tensor(step_times(steps, t_start, t_end)[:-1], dtype=torch.float64)
    sigmas = torch.exp(-RELEASED_DIFFUSION.schedule(times, shift) / 2)
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def time_of(sigma: float, shift: float, sigma_max: float) -> float:
    """The t at which the released schedule with this shift has this noise level; 1 from the largest level on."""
    if sigma >= sigma_max * (1 - 1e-5):
        return 1.0
    log_snr = torch.tensor(-2 * math.log(max(sigma, 1e-6)) + 2 * math.log(shift), dtype=torch.float64)
    # Rounded, so that the end of an interval that the artist typed belongs to it.
    return round(min(max(NOISE_CONDITIONS["cosine_t"]()(log_snr).item(), 0.0), 1.0), 5)


class CascadeGuidance(comfy.samplers.CFGGuider):
    """The released guidance as a GUIDER: rescaled by rho, in an interval, with a ramp."""

    guidance = Guidance()

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = {}, seed: Any = None) -> Tensor:  # noqa: B006
        sampling = self.inner_model.model_sampling
        t = time_of(float(timestep[0]), getattr(sampling, "shift", 1.0), float(sampling.sigma_max))
        # A guidance function that the artist put on the model wins.
        options = {"sampler_cfg_function": self._function(t), **model_options}
        negative, positive = self.conds.get("negative"), self.conds.get("positive")
        scale = self.guidance.scale_at(t)
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, scale, model_options=options, seed=seed
        )

    def _function(self, t: float) -> Callable[[dict[str, Any]], Tensor]:
        def combine(args: dict[str, Any]) -> Tensor:
            # Noise predictions, times sigma: the scale of both is the same, so rescaling is not changed by it.
            if self.guidance.scale_at(t) == 1:
                return args["cond"]
            return self.guidance.combine(args["cond"], args["uncond"], t)

        return combine


def guider(model: Any, positive: Any, negative: Any, guidance: Guidance) -> CascadeGuidance:
    """A GUIDER with both conditionings."""
    made = CascadeGuidance(model)
    made.set_conds(positive, negative)
    made.set_cfg(guidance.scale if isinstance(guidance.scale, float) else guidance.scale[0])
    made.guidance = guidance
    return made


def run(
    guided: CascadeGuidance,
    latent: dict[str, Any],
    samples: Tensor,
    seed: int,
    stream: str,
    sampler: str,
    sigmas: Tensor,
    noised_to: float | None = None,
) -> dict[str, Any]:
    """The latent with what sampling made of its samples [B, c, h, w].

    Image i of a batch has the noise of seed + i (or of the index that the host kept for it), on its own: so, but for
    rounding, it is the same alone, in a batch, and from the library with that seed.

    noised_to: the level that the latents are really noised to, where it is not that of the first step.
    """
    noise = SeededNoise(_seeds(latent, len(samples), seed), stream)
    start = noise.start(*samples.shape[1:])
    result = guided.sample(
        start,
        samples,
        _starting_at(noised_to, _sampler(sampler, noise, start.to(guided.model_patcher.load_device))),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(guided.model_patcher, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    result = result.to(comfy.model_management.intermediate_device())
    return {
        **{name: value for name, value in latent.items() if name in ("noise_mask", "batch_index")},
        "samples": result,
    }


def _seeds(latent: dict[str, Any], images: int, seed: int) -> Sequence[int]:
    places = latent.get("batch_index") or range(images)
    return [seed + place for place in places]


def _sampler(name: str, noise: SeededNoise, like: Tensor) -> Any:
    """A sampler of the host; one that draws noise on its way takes ours, in the order in which it asks for it."""
    made = comfy.samplers.sampler_object(name)
    if "noise_sampler" not in inspect.signature(made.sampler_function).parameters:
        return made
    steps = count()
    options = {**made.extra_options, "noise_sampler": lambda *_: noise(like, next(steps))}
    return comfy.samplers.KSAMPLER(made.sampler_function, options, made.inpaint_options)


def _starting_at(sigma: float | None, sampler: Any) -> Any:
    """The sampler, for a start that is noised to another level than it believes; None: to that which it believes."""
    if sigma is None:
        return sampler
    function = sampler.sampler_function

    @wraps(function)
    def from_other_level(model: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
        x0, believed = model.latent_image, float(sigmas[0])
        noised = x0 + (x - x0) * (sigma / believed)
        # The host's x is the network's times sqrt(1 + sigma^2), with the level that it believes.
        return function(model, noised * math.sqrt((1 + believed**2) / (1 + sigma**2)), sigmas, *args, **kwargs)

    return comfy.samplers.KSAMPLER(from_other_level, sampler.extra_options, sampler.inpaint_options)


def shifted(model: Any, shift: float) -> Any:
    """The model with this shift, by which the host knows where a run's percentages lie. The same where it has it."""
    current = model.get_model_object("model_sampling")
    if math.isclose(getattr(current, "shift", shift), shift):
        return model
    # The host's own way computes its table one level at a time, which takes longer than a step.
    sampling = copy.deepcopy(current)
    sampling.shift = shift
    sampling.set_sigmas(sampling.sigma(torch.arange(1, sampling.num_timesteps + 1) / sampling.num_timesteps))
    changed = model.clone()
    changed.add_object_patch("model_sampling", sampling)
    return changed


def start_of_stage_b(stage_c: dict[str, Any], samples: Tensor) -> dict[str, Any]:
    """Stage B's empty latent for the image whose Stage C latent [B, 16, h, w] this is."""
    # Even, which the host's own Stage B wants.
    height, width = (2 * round(side * STAGE_C_FACTOR / STAGE_B_FACTOR / 2) for side in samples.shape[-2:])
    kept = {name: stage_c[name] for name in ("batch_index",) if name in stage_c}
    return {**kept, "samples": samples.new_zeros(len(samples), 4, height, width)}


def repeated(samples: Tensor, batch: int) -> Tensor:
    """Samples for a batch of this size; a larger batch of their own stays."""
    return samples if len(samples) >= batch else comfy.utils.repeat_to_batch_size(samples, batch)


def with_prior(conditioning: Any, samples: Tensor | None) -> Any:
    """The conditioning with Stage C's latents for Stage B, or without any."""
    found = []
    for embedding, extras in conditioning:
        kept = {name: value for name, value in extras.items() if name != "stable_cascade_prior"}
        found.append([embedding, kept if samples is None else {**kept, "stable_cascade_prior": samples}])
    return found
