"""Images to image embeddings, with CLIP's vision model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# CLIP's own normalization (Radford et al. 2021), per channel of RGB.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder:
    """Wraps a `transformers.CLIPVisionModelWithProjection`; the model stays where and in the dtype it is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        """Image embeddings [B, 1, c] of images [B, 3, H, W] in [0, 1]; gradients flow."""
        parameter = next(self.model.parameters())
        config: Any = self.model.config
        pixels = preprocess(images.to(parameter.device, torch.float32), config.image_size)
        output: Any = self.model(pixel_values=pixels.to(parameter.dtype))
        return output.image_embeds[:, None]


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


def combine_images(embeddings: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """k image embeddings [B, 1, c], each multiplied by its weight, as one `clip_img` [B, k, c]."""
    scale = [1.0] * len(embeddings) if weights is None else weights
    return torch.cat([weight * embedding for weight, embedding in zip(scale, embeddings, strict=True)], dim=1)
