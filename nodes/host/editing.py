"""Edits of images by their prompt, and maps of its words, on a MODEL: the library's control of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...cascade.diffusion import Guidance, Inverted, SamplingSettings
from ...cascade.editing import EditStrength, PromptToPrompt, WordMaps, align
from ...cascade.errors import CascadeError, InvalidSettings
from ...cascade.images import resize_mask
from ...cascade.models import StageC
from ...cascade.pipelines import Inversion, StagePlan, Start, stage_b_size
from ...cascade.pipelines.inversion import MadeWith, fingerprint
from ...cascade.pipelines.sizes import STAGE_B_FACTOR
from . import checks
from .attention import controlled
from .prompts import single
from .sampling import run, seeds_of, with_samples

INVERSION = "cascade_inversion"
"""Where a LATENT has an `Inversion`."""
KEY = "cascade_edit"
READING = SamplingSettings(steps=8, shift=2.0, start_percent=0.5, guidance=Guidance(cfg=1.0))
"""The noise levels at which a finished image is read for maps of words. On the tiny cascade the 20 of a whole run
give no better maps."""


def inverted(
    model: Any, positive: Any, negative: Any, latent: dict[str, Any], seed: int, settings: SamplingSettings
) -> dict[str, Any]:
    """Stage C's LATENT of images with their inversion; the prompt describes them.

    Raises CascadeError for a model or latent of another kind, and for a positive that is not one prompt.
    """
    prompt, _, _ = single(positive, "positive")
    made = MadeWith.of(settings, prompt=prompt.tokens.prompt, model=fingerprint(stage_c_of(model)))
    plan = _of_images(positive, negative, latent, seed, settings)
    found = _followed(model, plan)
    checks.finite(found.added, "Stage C", "inversion")
    samples = latent["samples"]
    return {**with_samples(latent, samples), INVERSION: Inversion(samples.float().cpu(), found, made)}


def word_maps(model: Any, positive: Any, latent: dict[str, Any], words: Sequence[str]) -> list[Tensor]:
    """For each of the words of a prompt where Stage C's LATENT shows it: [B, 1, H, W], each from 0 to 1.

    The images get the noise of `READING`, and the network is asked what they show. Sizes are those of the images.

    Raises CascadeError as `inverted`, InvalidSettings for a word that is not in the prompt.
    """
    prompt, _, _ = single(positive, "positive")
    places = [prompt.find(word) for word in words]
    plan, maps = _of_images(positive, positive, latent, 0, READING), WordMaps()
    _followed(controlled(model, lambda _: maps), plan)
    return [maps.shown(at, pixels_of(plan.size)).cpu() for at in places]


def _of_images(positive: Any, negative: Any, latent: dict[str, Any], seed: int, settings: SamplingSettings) -> Any:
    """The plan of a run that starts from images."""
    samples = checks.latents(latent, "Stage C")
    if not samples.any():
        raise CascadeError(
            "This latent is empty. Connect that of an image: stage_c of Encode Image (Stable Cascade), or of a sampler."
        )
    return StagePlan(
        stage="stage_c",
        size=samples.shape[1:],
        seeds=seeds_of(latent, len(samples), seed),
        settings=settings,
        cond=positive,
        uncond=negative,
        start=Start(latents=samples),
    )


def _followed(model: Any, plan: StagePlan[Any]) -> Inverted:
    """The noise with which the run of a plan ends at the latents of its start."""
    checks.model(model, "Stage C")
    inverting = plan.inverting(model.load_device)
    found = inverting.found(run(model, plan, inverting))
    return Inverted(found.starts.cpu(), found.added.cpu())


def pixels_of(size: Sequence[int]) -> tuple[int, int]:
    """Height and width of the image of Stage C's latents of this size [..., h, w]."""
    height, width = (STAGE_B_FACTOR * side for side in stage_b_size(size))
    return height, width


def edited(
    model: Any,
    prompts: tuple[Any, Any, Any],
    latent: dict[str, Any],
    seed: int,
    settings: SamplingSettings,
    strength: EditStrength,
    skip: int,
) -> tuple[dict[str, Any], dict[str, Any], Tensor]:
    """Stage C's LATENT of edited images, that of their sources, and the MASK of what may differ.

    prompts: CONDITIONINGs of the sources, of the edited images, and the negative one. latent: empty, for new images of
    the sources' prompt; or with an inversion, for its images. skip: see `Inversion.plan`.

    Raises CascadeError for what does not fit: prompts, latents, model, an inversion.
    """
    source, positive, negative = prompts
    net, samples = stage_c_of(model), checks.latents(latent, "Stage C")
    control, cond = _both(source, positive, len(samples), strength)
    seeds = seeds_of(latent, len(samples), seed)
    plan = StagePlan(
        stage="stage_c",
        size=samples.shape[1:],
        seeds=[*seeds, *seeds],
        settings=settings,
        cond=cond,
        uncond=negative,
        start=Start(latents=torch.cat([samples, samples])),
    )
    inversion: Inversion | None = latent.get(INVERSION)
    if inversion is not None:
        _check_inversion(inversion, net, source, len(samples))
        plan = inversion.plan(plan, skip)
    elif samples.any():
        raise CascadeError(
            "latent_image is an image that was not inverted: put Invert Image (Stable Cascade) before it. To edit a "
            "generated image, connect an empty latent: the image of the prompt source is then made with its edit."
        )
    elif skip:
        raise InvalidSettings("skip is for images of Invert Image (Stable Cascade): set it to 0, or connect one.")
    result = run(_editing(model, control, len(samples)), plan)
    before, after = checks.finite(result, "Stage C").chunk(2)
    changed = control.changed()
    mask = torch.ones(len(samples), 1, 1, 1) if changed is None else changed.float().cpu()
    mask = resize_mask(mask, pixels_of(samples.shape))
    return with_samples(latent, after), with_samples(latent, before), mask[:, 0]


def _both(source: Any, positive: Any, images: int, strength: EditStrength) -> tuple[PromptToPrompt, Any]:
    """The control of an edit, and its CONDITIONING: for so many images of a prompt, and as many of the changed one."""
    (first, old, _), (second, new, extras) = single(source, "source"), single(positive, "positive")
    length = old.hidden.shape[1]
    if new.hidden.shape[1] != length:
        raise InvalidSettings(
            f"The prompts source and positive have {length} and {new.hidden.shape[1]} tokens with their padding: make "
            "both shorter than 75 tokens, or both longer."
        )
    if torch.equal(old.hidden, new.hidden):
        raise InvalidSettings("source and positive are the same prompt: change what should change in positive.")
    control = PromptToPrompt(align(first.tokens, second.tokens, length), strength)
    hidden, pooled = (
        torch.cat([a.expand(images, -1, -1), b.expand(images, -1, -1)])
        for a, b in ((old.hidden, new.hidden), (old.pooled, new.pooled))
    )
    return control, [[hidden, {**extras, "pooled_output": pooled}]]


def _check_inversion(inversion: Inversion, net: StageC, source: Any, images: int) -> None:
    """Raises CascadeError for an inversion of another Stage C, number of images or prompt."""
    inversion.check_model(net)
    if len(inversion.latents) != images:
        raise InvalidSettings(
            f"Invert Image inverted {len(inversion.latents)} images, and latent_image has {images}: connect its output "
            "directly."
        )
    prompt, there = single(source, "source")[0].tokens.prompt, inversion.made.prompt
    if prompt != there:
        raise InvalidSettings(
            f"The image was inverted with the prompt {there!r}, and source is {prompt!r}: connect the same to both."
        )


def _editing(model: Any, control: PromptToPrompt, images: int) -> Any:
    """The MODEL with the control of one run, whose previews show the edited images."""
    changed = controlled(model, lambda _: control)

    def show_edited(executor: Any, noise: Any, latents: Any, sampler: Any, sigmas: Any, *args: Any, **rest: Any) -> Any:
        mask, callback, *more = args

        def on_step(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            callback(step, x0[images:], x, total)

        return executor(noise, latents, sampler, sigmas, mask, on_step, *more, **rest)

    changed.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, show_edited)
    if (keeping := control.keeping) is not None:

        def blend(executor: Callable[..., Tensor], x: Tensor, *args: Any, **rest: Any) -> Tensor:
            return keeping.restored(executor(keeping.restored(x), *args, **rest))

        changed.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, blend)
    return changed


def stage_c_of(model: Any) -> StageC:
    """The network of a MODEL, which must be our Stage C. Raises CascadeError."""
    net = checks.model(model, "Stage C").model.diffusion_model
    if not isinstance(net, StageC):
        raise CascadeError(
            "This takes a Stage C of Load Stage C (Stable Cascade) or Load Checkpoint (Stable Cascade); this one was "
            "loaded by ComfyUI's own node."
        )
    return net
