"""Resizing and normalising as the released models were used."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# ImageNet's statistics, which the EfficientNet encoder was trained with, per channel of RGB.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def resize_short_side(images: Tensor, size: int) -> Tensor:
    """Resize [B, 3, H, W] so that its short side is `size` (bilinear, antialiased); the long side is rounded down."""
    height, width = images.shape[-2:]
    short = min(height, width)
    target = (size * height // short, size * width // short)
    return F.interpolate(images, target, mode="bilinear", antialias=True)


def three_quarters(images: Tensor) -> Tensor:
    """The released reconstruction size: 3/4 of each side, down to a multiple of 32 (at least 32), nearest pixel."""
    height, width = (max(32, side * 3 // 4 // 32 * 32) for side in images.shape[-2:])
    return F.interpolate(images, (height, width), mode="nearest")


def normalise(images: Tensor) -> Tensor:
    """ImageNet's mean and deviation taken out of [B, 3, H, W] in [0, 1]."""
    mean, std = images.new_tensor(MEAN), images.new_tensor(STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def effnet_input(images: Tensor) -> Tensor:
    """What the EfficientNet encoder wants of pictures [B, 3, H, W] in [0, 1] at their full size."""
    return normalise(three_quarters(images))
