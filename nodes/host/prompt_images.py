"""Image prompts in a CONDITIONING: entries of the host's own unclip_conditioning, with what its nodes do not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.utils
from torch import Tensor

from ...cascade.conditioning import noise_augmented
from ...cascade.editing import COMBINE, PlacedImages, PromptImages, SeenImages
from ...cascade.errors import InvalidSettings
from ...cascade.images import as_mask
from .imaging import ONE_EACH, output_of

PLACED = "cascade_placed"
"""A key of our own in an entry of unclip_conditioning: a `PlacedImages`, whose embeddings have no noise yet."""


def with_images(
    conditioning: Any,
    outputs: Sequence[Any],
    weights: Sequence[float],
    combine: str,
    noise_augmentation: float,
    *,
    mask: Tensor | None = None,
    **place: Any,
) -> Any:
    """The conditioning with more image prompts.

    outputs: CLIP_VISION_OUTPUTs, one for each weight; all images of a batch have its weight. mask: a MASK.
    place: other arguments of `PlacedImages`.

    Raises CascadeError for an empty mask, several masks, what is out of range, and too many images.
    """
    if mask is not None and not bool(mask.any()):
        raise InvalidSettings("Image Prompt: the mask is empty: paint where the images should count.")
    if mask is not None and mask.ndim > 2 and len(mask) != 1:
        raise InvalidSettings(f"Image Prompt takes one mask, and these are {len(mask)}: use a node for each.")
    pairs = [
        (embedding[None, None].float().cpu(), weight)
        for output, weight in zip(outputs, weights, strict=True)
        for embedding in output.image_embeds
    ]
    images = COMBINE[combine]([embedding for embedding, _ in pairs], [weight for _, weight in pairs])
    placed = PlacedImages(images=images, mask=None if mask is None else as_mask(mask), **place)
    if not images.weights or placed.strength == 0:
        return conditioning
    entry = {
        "clip_vision_output": output_of(images.embeddings[0]),
        "strength": 1.0,
        "noise_augmentation": noise_augmentation,
        PLACED: placed,
    }
    found = []
    for embedding, extras in conditioning:
        entries = [*extras.get("unclip_conditioning", ()), entry]
        image_prompts(entries)  # checks them
        found.append([embedding, {**extras, "unclip_conditioning": entries}])
    return found


def image_prompts(entries: Sequence[Mapping[str, Any]]) -> SeenImages:
    """The image prompts of a CONDITIONING, also those of the host's own nodes. Raises InvalidSettings for too many."""
    placed = [_placed(entry) for entry in entries if entry["strength"]]
    rows = max((len(each.images.embeddings) for each in placed), default=1)
    images = [
        replace(
            each,
            images=replace(each.images, embeddings=comfy.utils.repeat_to_batch_size(each.images.embeddings, rows)),
        )
        for each in placed
    ]
    # A conditioning has its own, whether it is used as the prompt or as the negative prompt.
    return SeenImages(images, images)


def _placed(entry: Mapping[str, Any]) -> PlacedImages:
    seen = entry["clip_vision_output"].image_embeds.float().cpu()
    embeddings = entry["strength"] * noise_augmented(seen, entry.get("noise_augmentation", 0.0))
    embeddings = embeddings.unsqueeze(1 if entry.get(ONE_EACH) else 0)
    known = entry.get(PLACED)
    weights = (1.0,) * embeddings.shape[1] if known is None else known.images.weights
    images = PromptImages(embeddings, weights)
    return PlacedImages(images=images) if known is None else replace(known, images=images)
