"""Edits of given images: their inversion, a run with a changed prompt, Stage B from the image where nothing changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..editing import EditStrength
from ..images import as_mask, as_rgb, fit, mask_of_latent, resize_mask
from ..models import StageC
from .edit import RELEASED_STRENGTH, both
from .generate import RELEASED_SETTINGS, Generated, OnProgress, Run, Settings
from .inversion import Inversion, MadeWith, fingerprint
from .networks import Parts
from .plan import Start
from .stages import encode_prompts, encode_stage_a, encode_stage_c


@torch.no_grad()
def invert_images(
    parts: Parts,
    images: Tensor,
    prompt: str,
    *,
    seeds: Sequence[int],
    negative: str = "",
    settings: Settings = RELEASED_SETTINGS,
    on_progress: OnProgress | None = None,
) -> Inversion:
    """What Stage C needs to end at images [B, 3, H, W] in [0, 1], which the prompt describes.

    parts: "text_encoder", "effnet", "stage_c". seeds: of the noise in the images. settings: the images' size, to which
    they are scaled and cropped, and steps, cfg and shift of Stage C.

    Raises ValueError for images and seeds of unequal number, InvalidSettings for another sampler than ddpm or a part of
    a run, and what loading a part raises.
    """
    if len(images) != len(seeds):
        raise ValueError(f"each image needs a seed: {len(images)} images, {len(seeds)} seeds")
    made = MadeWith.of(settings.stage_c, prompt=prompt, negative=negative)
    images = fit(as_rgb(images), *settings.final)
    size = settings.sizes.stage_c[-2:]
    latents = parts.use("effnet", lambda net: encode_stage_c(net, images, size))
    texts = parts.use("text_encoder", lambda net: encode_prompts(net, [prompt, negative]))
    run = Run(
        texts=[texts[prompt]] * len(images),
        negative=texts[negative],
        seeds=seeds,
        settings=settings,
        start_c=Start(latents=latents),
        on_progress=on_progress,
    )

    def inversion(net: StageC) -> Inversion:
        return Inversion(latents.float(), run.inverted(net), replace(made, model=fingerprint(net)))

    return parts.use("stage_c", inversion)


@torch.no_grad()
def edit_images(
    parts: Parts,
    images: Tensor,
    inversion: Inversion,
    to: str,
    *,
    seeds: Sequence[int],
    skip: int = 0,
    strength: EditStrength = RELEASED_STRENGTH,
    weights: Mapping[str, float] | None = None,
    mask: Tensor | None = None,
    settings: Settings = RELEASED_SETTINGS,
    on_progress: OnProgress | None = None,
) -> Generated:
    """The images [B, 3, H, W] of an inversion changed to show `to`: its prompt with words exchanged, added or left out.

    parts: as for `generate`. seeds: of Stage B's noise. skip: the first steps that are left out; more keeps more of the
    images. strength, weights: as in `edit`. mask: [B or 1, 1, H, W] in [0, 1], outside of which the images stay as they
    are; None: where the changed words are seen, with `strength.blend`. settings: with the inversion's steps and shift.

    Raises ValueError for images and seeds of unequal number, InvalidSettings and IncompatibleCheckpoint for settings
    and a Stage C that are not the inversion's, and as `edit`.
    """
    if not len(images) == len(seeds) == len(inversion.latents):
        raise ValueError(
            f"each image needs a seed: {len(images)} images, {len(seeds)} seeds, an inversion of "
            f"{len(inversion.latents)}"
        )
    images = fit(as_rgb(images), *settings.final)
    mask = None if mask is None else as_mask(mask)
    made, count = inversion.made, len(images)
    control, run = both(
        parts,
        (made.prompt, to, made.negative),
        seeds,
        strength,
        weights,
        settings=settings,
        inversion=inversion.of([*range(count)] * 2),
        skip=skip,
        on_progress=on_progress,
    )

    def edited(net: StageC) -> Tensor:
        inversion.check_model(net)
        return run.stage_c(net)

    stage_c = parts.use("stage_c", edited)[count:]
    run = replace(run, texts=run.texts[count:], seeds=seeds)
    if mask is None:
        mask = control.changed()
    if mask is not None:
        mask = resize_mask(mask.cpu(), settings.final)
        stage_b = parts.use("stage_a", lambda net: encode_stage_a(net, images, settings.tile_size))
        start = Start(latents=stage_b, mask=mask_of_latent(mask, stage_b.shape[-2:]))
        run = replace(run, start_b=start, around=(images, mask))
    return run.from_stage_c(parts, stage_c)


@torch.no_grad()
def made_again(parts: Parts, inversion: Inversion, settings: Settings = RELEASED_SETTINGS) -> Tensor:
    """Stage C's latents [B, 16, h, w] of a run with an inversion and its own prompt: those of the images, to rounding.

    parts: "text_encoder", "stage_c".
    """
    made, count = inversion.made, len(inversion.latents)
    texts = parts.use("text_encoder", lambda net: encode_prompts(net, [made.prompt, made.negative]))
    run = Run(
        texts=[texts[made.prompt]] * count,
        negative=texts[made.negative],
        seeds=range(count),
        settings=settings,
        inversion=inversion,
    )
    return parts.use("stage_c", run.stage_c)
