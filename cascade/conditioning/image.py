"""Images to image embeddings, with CLIP's vision model."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidSettings

# CLIP's own normalization (Radford et al. 2021), per channel of RGB.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder:
    """Wraps a `transformers.CLIPVisionModelWithProjection`; the model stays where and in the dtype it is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        """Image embeddings [B, 1, c] of images [B, 3, H, W] in [0, 1]; gradients flow."""
        return self._run(images).image_embeds[:, None]

    def hidden_states(self, images: Tensor) -> Tensor:
        """What enters the last layer [B, 1 + patches, c], of images as in `encode`; IP-Adapters read it."""
        return self._run(images, output_hidden_states=True).hidden_states[-2]

    def _run(self, images: Tensor, **options: bool) -> Any:
        parameter = next(self.model.parameters())
        config: Any = self.model.config
        pixels = preprocess(images.to(parameter.device, torch.float32), config.image_size)
        return self.model(pixel_values=pixels.to(parameter.dtype), **options)


def preprocess(images: Tensor, size: int) -> Tensor:
    """As in CLIP: short side to `size` (bicubic), cropped to a centered square, normalized. [B, 3, size, size]."""
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    resized = (max(size, int(height * scale)), max(size, int(width * scale)))
    images = F.interpolate(images, resized, mode="bicubic", antialias=True).clamp(0, 1)
    # Rounded half to even, as torchvision's center crop does.
    top, left = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    images = images[..., top : top + size, left : left + size]
    mean, std = images.new_tensor(MEAN), images.new_tensor(STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def noise_augmented(embeddings: Tensor, level: float) -> Tensor:
    """Embeddings [..., c] with noise of a level in [0, 1]: 0 changes nothing, at 1 only noise of their length is left.

    As in unCLIP (Ramesh et al. 2022, section 2; the cosine schedule of Nichol and Dhariwal 2021, eq. 17), except that
    each embedding is scaled to unit variance by itself: Stable Cascade has no statistics of embeddings, and it is not
    told the level. The noise is always the same, so an image is the same alone and in a batch.

    Raises InvalidSettings for a level outside 0 to 1.
    """
    if not 0 <= level <= 1:
        raise InvalidSettings(f"noise_augmentation must be from 0 to 1, got {level}")
    if level == 0:
        return embeddings
    kept = (_cosine(level) / _cosine(0.0)) ** 2
    noise = torch.randn(embeddings.shape[-1], generator=torch.Generator().manual_seed(0)).to(embeddings)
    scale = embeddings.square().mean(-1, keepdim=True).sqrt()
    return math.sqrt(kept) * embeddings + math.sqrt(1 - kept) * scale * noise


def _cosine(level: float) -> float:
    return math.cos((level + 0.008) / 1.008 * math.pi / 2)
