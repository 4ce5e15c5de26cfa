"""The similarity of two images, both side by side, and seams. Images are [3, H, W] in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def seam_ratio(images: Tensor, rows: Sequence[int], columns: Sequence[int], *, period: int) -> float:
    """The gradient of images [B, 3, H, W] across borders of tiles, over that beside them; about 1 without seams.

    The gradient of a line is the median over it: a seam is all along a border, while the outline of what is in an image
    crosses a line, or runs along a part of it.

    rows, columns: the first row, or column, after each border. period: pixels. A border is compared with the two lines
    so many pixels before and after it, which have the same place in the patches that a network works in: these have
    gradients of their own. ValueError for lines outside of the images.
    """
    across = beside = 0.0
    for lines, dim in ((rows, -2), (columns, -1)):
        if lines and not period < min(lines) <= max(lines) < images.shape[dim] - period:
            raise ValueError(f"borders at {list(lines)} with {period} pixels beside them in {images.shape[dim]} pixels")
        # Entry i is the gradient from line i to i + 1.
        gradients = images.float().diff(dim=dim).abs().mean(dim=1).transpose(dim, -1).median(dim=1).values.mean(dim=0)
        across += sum(float(gradients[line - 1]) for line in lines)
        beside += sum(float(gradients[line - 1 + side]) for line in lines for side in (-period, period)) / 2
    return across / max(beside, 1e-12)


def side_by_side(images: Tensor, others: Tensor) -> Tensor:
    """Images [B, 3, H, W] with their counterparts on the right, a white gap between: [B, 3, H, 2 W + gap]."""
    gap = images.new_ones(*images.shape[:-1], max(1, round(images.shape[-1] * GAP)))
    return torch.cat([images, gap, others.to(images)], dim=-1)
