"""Images beside the prompt of a run, and beside its negative prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..conditioning import ImageEncoder
from ..conditioning.image import noise_augmented
from ..diffusion import InInterval
from ..editing import BLOCK_WEIGHTS, COMBINE, BlockWeights, PlacedImages, PromptImages, SeenImages
from ..errors import InvalidSettings
from ..images import as_rgb
from .networks import Parts


@dataclass(frozen=True, kw_only=True)
class ImagePrompt(InInterval):
    """Images that Stage C reads beside the text, with one place, one part of the run and one choice of blocks.

    images: each [1, 3, H, W] in [0, 1] for all images of the run, or [B, 3, H, W], one for each.
    weights: of each: how much of it attention sees beside the text. 1: as trained; 0: nothing; below 0: the opposite of
        the image. Default: 1 each.
    combine: concat: Stage C reads each of them. average: one embedding between them, nearer to those of larger weights.
        subtract: the first without what the others have.
    noise_augmentation: noise in the embeddings, 0 (none) to 1 (only noise): looser variations, see `noise_augmented`.
    mask: [1, 1, H, W] in [0, 1], white where the images count, scaled to the image; None: everywhere.
    blocks: the attention blocks that see them.
    strength: how much all of them are seen, 0 to 1; at 0 the run is the plain one, bit for bit.

    Raises InvalidSettings for what is out of range.
    """

    images: Sequence[Tensor]
    weights: Sequence[float] | None = None
    combine: str = "concat"
    noise_augmentation: float = 0.0
    mask: Tensor | None = None
    blocks: BlockWeights = BLOCK_WEIGHTS["all"]
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images or (self.weights is not None and len(self.weights) != len(self.images)):
            weights = 0 if self.weights is None else len(self.weights)
            raise InvalidSettings(f"each image of an image prompt has one weight: {len(self.images)} and {weights}")
        if not all(map(math.isfinite, self.weights or ())):
            raise InvalidSettings(
                f"the weights of an image prompt must be finite numbers, got {list(self.weights or ())}"
            )
        if self.combine not in COMBINE:
            raise InvalidSettings(f"combine must be one of {', '.join(COMBINE)}, got {self.combine!r}")

    def placed(self, encoder: ImageEncoder) -> PlacedImages:
        """Its embeddings, float32, on the CPU."""
        seen = [encoder.encode(as_rgb(image)).float().cpu() for image in self.images]
        rows = max(map(len, seen))
        seen = [embedding.expand(rows, -1, -1) for embedding in seen]
        images = COMBINE[self.combine](seen, self.weights or [1.0] * len(seen))
        return PlacedImages(
            images=replace(images, embeddings=noise_augmented(images.embeddings, self.noise_augmentation)),
            mask=self.mask,
            blocks=self.blocks,
            strength=self.strength,
            start_percent=self.start_percent,
            end_percent=self.end_percent,
        )


def encode_prompt_images(
    parts: Parts,
    images: Sequence[ImagePrompt],
    negative: Sequence[ImagePrompt] = (),
    embeddings: Tensor | None = None,
) -> SeenImages:
    """The image prompts of a run, after `embeddings` [B, 1, c] that no encoder made.

    The image encoder is not loaded without any. Raises MissingPart, InvalidImage.
    """
    first = [] if embeddings is None else [PlacedImages(images=PromptImages(embeddings.float().cpu(), (1.0,)))]
    if not images and not negative:
        return SeenImages(first)

    def encode(net: Any) -> SeenImages:
        encoder = ImageEncoder(net)
        placed, unlike = ([each.placed(encoder) for each in given] for given in (images, negative))
        return SeenImages([*first, *placed], unlike)

    return parts.use("image_encoder", encode)
