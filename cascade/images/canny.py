"""Canny edges as in the released ControlNet's training: the same as OpenCV's, without OpenCV."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

LEARNED_SIZE = 224
"""Side in pixels of the square at which edges were found in the released ControlNet's training."""


def canny(images: Tensor, *, size: int | None = LEARNED_SIZE, low: float = 100.0, high: float = 200.0) -> Tensor:
    """Edges [B, 1, H, W] in [0, 1] of images [B, 3, H, W] in [0, 1] (Canny 1986).

    Args:
        size: the images are scaled to a square of this side first, and the edges are scaled back to the images' size,
            both bilinear: as in the released training, several pixels wide at 1024. None: at full size, one pixel wide.
        low, high: gradients |dx| + |dy| of a Sobel filter on 8-bit pixels. An edge starts above `high`, and continues
            above `low`.
    """
    whole = images.shape[-2:]
    if size is not None:
        images = F.interpolate(images.float(), (size, size), mode="bilinear")
    # Truncated, not rounded, as in the released training.
    pixels = (images.detach().float().clamp(0, 1) * 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
    found = torch.from_numpy(np.stack([_edges(image, low, high) for image in pixels])).float()
    edges = found[:, None].to(images.device)
    return edges if size is None else F.interpolate(edges, whole, mode="bilinear")


def _edges(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Edges [h, w] of an image uint8 [h, w, 3]."""
    dx, dy = _slope(image.astype(np.int32), 1), _slope(image.astype(np.int32), 0)
    norm = np.abs(dx) + np.abs(dy)
    # At each pixel, the channel with the steepest slope.
    steepest = norm.argmax(axis=-1)[..., None]
    dx, dy, norm = (np.take_along_axis(values, steepest, axis=-1)[..., 0] for values in (dx, dy, norm))
    candidates = (norm > np.floor(low)) & _ridge(dx, dy, norm)
    labels: Any = ndimage.label(candidates, structure=np.ones((3, 3)))
    strong = np.unique(labels[0][candidates & (norm > np.floor(high))])
    return np.isin(labels[0], strong[strong > 0])


def _slope(pixels: np.ndarray, axis: int) -> np.ndarray:
    """Sobel's filter along an axis of [h, w, channels]; beyond the border the last pixel is repeated."""
    smooth = ndimage.correlate1d(pixels, [1, 2, 1], axis=1 - axis, mode="nearest")
    return ndimage.correlate1d(smooth, [-1, 0, 1], axis=axis, mode="nearest")


# The tangents of 22.5 and 67.5 degrees, between which a slope counts as diagonal.
FLAT, STEEP = round((np.sqrt(2) - 1) * (1 << 15)), round((np.sqrt(2) - 1) * (1 << 15)) + (2 << 15)


def _ridge(dx: np.ndarray, dy: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Where the gradient is largest across the edge. Of equal neighbors one counts: the left or upper one does not."""
    framed = np.pad(norm, 1)

    def neighbor(down: int, right: int) -> np.ndarray:
        height, width = norm.shape
        return framed[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = np.abs(dx).astype(np.int64), np.abs(dy).astype(np.int64) << 15
    across = (norm > neighbor(0, -1)) & (norm >= neighbor(0, 1))
    along = (norm > neighbor(-1, 0)) & (norm >= neighbor(1, 0))
    falling = (norm > neighbor(-1, -1)) & (norm > neighbor(1, 1))
    rising = (norm > neighbor(-1, 1)) & (norm > neighbor(1, -1))
    diagonal = np.where((dx < 0) != (dy < 0), rising, falling)
    return np.where(y < x * FLAT, across, np.where(y > x * STEEP, along, diagonal))
