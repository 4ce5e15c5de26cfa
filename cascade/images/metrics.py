"""The similarity of two images, and both side by side. Images are [3, H, W] in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAP = 1 / 64
"""Width of the gap between two images, as a fraction of their width."""


def psnr(image: Tensor, other: Tensor) -> float:
    """Peak signal to noise ratio in dB; 100 for identical images."""
    return -10 * math.log10(max(float((image - other).square().mean()), 1e-10))


def ssim(image: Tensor, other: Tensor, window: int = 11) -> float:
    """Structural similarity (Wang et al. 2004), mean over the image; 1 for identical images."""
    from kornia.metrics import ssim as ssim_map

    return float(ssim_map(image[None].float(), other[None].float(), window).mean())


def side_by_side(images: Tensor, others: Tensor) -> Tensor:
    """Images [B, 3, H, W] with their counterparts on the right, a white gap between: [B, 3, H, 2 W + gap]."""
    gap = images.new_ones(*images.shape[:-1], max(1, round(images.shape[-1] * GAP)))
    return torch.cat([images, gap, others.to(images)], dim=-1)
