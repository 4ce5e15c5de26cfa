"""Masks: [B, 1, H, W] in [0, 1], 1 where an image is generated again, soft in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidImage


def as_mask(mask: Tensor) -> Tensor:
    """[B, 1, H, W] float32 in [0, 1] of [H, W], [B, H, W] or [B, 1, H, W].

    Raises InvalidImage for an empty mask: nothing would be generated again.
    """
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float().nan_to_num().clamp(0, 1)
    if not bool(mask.any()):
        raise InvalidImage(
            "The mask is empty: nothing would be generated again. Paint what should change, or invert the mask."
        )
    return mask


def mask_of_latent(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask [B, 1, H, W] for latents of size (h, w): the largest value in the area of a position.

    So a spot that is smaller than a position is generated again too.
    """
    return F.adaptive_max_pool2d(mask, tuple(size))


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask [B, 1, H, W] scaled to an image of size (H', W')."""
    if mask.shape[-2:] == tuple(size):
        return mask
    return F.interpolate(mask, tuple(size), mode="bilinear", antialias=True).clamp(0, 1)
