"""Resizing and normalizing as in the released code."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

# ImageNet's statistics, which the EfficientNet encoder was trained with, per channel of RGB.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

EFFNET_FACTOR = 32
"""Pixels of the encoder's image along a side for each position of the latent."""
COMPRESSION = 42.67
"""Pixels of an image per position of Stage C's latent, along a side, as released.

The encoder gets the image at 3/4 of each side, and makes one position of 32 pixels."""


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width in these proportions with a short side of `short_side`; the long one rounded down."""
    short = min(height, width)
    return short_side * height // short, short_side * width // short


def resize_short_side(images: Tensor, size: int) -> Tensor:
    """Resize [B, 3, H, W] so that its short side is `size` (bilinear, antialiased); the long side is rounded down."""
    height, width = images.shape[-2:]
    return F.interpolate(images, short_side_size(height, width, size), mode="bilinear", antialias=True)


def three_quarters(images: Tensor, compression: float = COMPRESSION) -> Tensor:
    """The released reconstruction size: 3/4 of each side, down to a multiple of 32 (at least 32), nearest pixel.

    compression: pixels of an image per position of the latent; other values than the released one give other sizes.
    """
    # 42.67 means 32 / (3/4), which has no exact decimal form.
    part = 3 / 4 if math.isclose(compression, COMPRESSION, abs_tol=0.005) else EFFNET_FACTOR / compression
    # The small number corrects rounding just below a whole number of positions.
    latents = (max(1, int(side * part / EFFNET_FACTOR + 1e-6)) for side in images.shape[-2:])
    height, width = (EFFNET_FACTOR * side for side in latents)
    return F.interpolate(images, (height, width), mode="nearest")


def fit(images: Tensor, height: int, width: int) -> Tensor:
    """Resize [B, 3, H, W] to cover (height, width), antialiased, and crop around the center."""
    have = images.shape[-2:]
    if have == (height, width):
        return images
    scale = max(height / have[0], width / have[1])
    covering = max(height, round(have[0] * scale)), max(width, round(have[1] * scale))
    images = F.interpolate(images, covering, mode="bilinear", antialias=True)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return images[..., top : top + height, left : left + width]


def resize_for_latent(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [B, 3, H, W] at the size that the EfficientNet encoder encodes to latents of size (h, w).

    Bilinear and antialiased, as released for image to image (short side 768 where the latents' is 24).
    """
    pixels = (size[0] * EFFNET_FACTOR, size[1] * EFFNET_FACTOR)
    return F.interpolate(images, pixels, mode="bilinear", antialias=True)


def stage_c_input(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The EfficientNet encoder's input for images [B, 3, H, W] in [0, 1] and latents of size (h, w)."""
    return normalize(resize_for_latent(images, size))


def normalize(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1], normalized by ImageNet's mean and standard deviation."""
    mean, std = images.new_tensor(MEAN), images.new_tensor(STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def effnet_input(images: Tensor, compression: float = COMPRESSION) -> Tensor:
    """The EfficientNet encoder's input for images [B, 3, H, W] in [0, 1], for reconstruction."""
    return normalize(three_quarters(images, compression))
