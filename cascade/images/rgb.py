"""Images of any number of channels as RGB."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidImage


def as_rgb(images: Tensor) -> Tensor:
    """[B, 3, H, W] float32 in [0, 1], of [B, c, H, W] in [0, 1]; the input is not changed.

    Gray (c = 1, or 2 with alpha) becomes gray RGB, alpha (c = 2 or 4) is dropped, values outside are clipped.

    Raises InvalidImage: no image, another number of channels, NaN or infinity.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise InvalidImage(f"There is no image here: its shape is {list(images.shape)}.")
    channels = images.shape[1]
    if channels not in (1, 2, 3, 4):
        raise InvalidImage(f"An image has 1 to 4 channels (gray or RGB, with or without alpha), not {channels}.")
    colors = images[:, : 3 if channels > 2 else 1].float()
    finite = torch.isfinite(colors)
    if not bool(finite.all()):
        broken = [i for i, good in enumerate(finite.flatten(1).all(dim=1).tolist()) if not good]
        raise InvalidImage(
            f"Image {broken[0] + 1} of {len(images)} has values that are NaN or infinity: check what made it."
        )
    return colors.clamp(0, 1).expand(-1, 3, -1, -1)
