"""Prompts of parts of an image, in a CONDITIONING: Stage C reads them all in one call, with any sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...cascade.conditioning import StageCInputs, TextEmbedding
from ...cascade.editing import AttentionController, Region, Regions, SeenImages
from ...cascade.errors import IncompatibleCheckpoint, InvalidSettings
from ...cascade.images import as_mask
from .prompts import REGIONS, encoded


def with_region(clip: Any, positive: Any, text: str, mask: Tensor, strength: float) -> Any:
    """The CONDITIONING with one more region. mask: [1, H, W], of any size.

    strength: how much of what the mask covers sees the region's prompt; the rest sees the base prompt. 0: unchanged.

    Raises CascadeError for an empty mask, several masks, another text encoder, and more tokens than can be read.
    """
    if not bool(mask.any()):
        raise InvalidSettings(f"The mask of the region {text!r} is empty: paint where its prompt should act.")
    mask = as_mask(mask)
    if len(mask) != 1:
        raise InvalidSettings(f"A region has one mask, and these are {len(mask)}: use a Regional Prompt for each.")
    hidden, extras = encoded(clip, text)[0]
    if strength == 0:
        return positive
    region = Region(strength * mask, TextEmbedding(hidden, extras["pooled_output"][:, None]))
    found = []
    for base, others in positive:
        if base.shape[-1] != hidden.shape[-1]:
            raise IncompatibleCheckpoint(
                f"The region's prompt is of width {hidden.shape[-1]}, positive of {base.shape[-1]}: use one text "
                "encoder for both."
            )
        regions = (*others.get(REGIONS, ()), region)
        Regions(regions)  # checks them
        found.append([base, {**others, REGIONS: regions}])
    return found


def seen(
    text: Tensor, pooled: Tensor, images: SeenImages, regions: Sequence[Region], channels: int
) -> tuple[StageCInputs, AttentionController | None]:
    """Stage C's conditions with those of regions and image prompts, and what controls who sees them, if anything does.

    channels: of an image embedding.
    """
    pooled = pooled[:, None] if pooled.dim() == 2 else pooled
    inputs = images.inputs(StageCInputs.without_image(TextEmbedding(text, pooled), channels))
    control = Regions(regions, base=0.0) if regions else None
    return inputs if control is None else control.inputs(inputs), images.beside(control)
