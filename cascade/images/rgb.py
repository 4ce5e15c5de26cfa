"""Whatever is called a picture, as the networks take it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidPicture


def as_rgb(images: Tensor) -> Tensor:
    """[B, 3, H, W] float32 in [0, 1], of [B, c, H, W] in [0, 1]; what was given stays as it is.

    Grey (c = 1, or 2 with alpha) becomes grey RGB, alpha (c = 2 or 4) is dropped, values outside are clipped.

    Raises InvalidPicture: no picture, another number of channels, NaN or infinity.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise InvalidPicture(f"There is no picture here: its shape is {list(images.shape)}.")
    channels = images.shape[1]
    if channels not in (1, 2, 3, 4):
        raise InvalidPicture(f"A picture has 1 to 4 channels (grey or RGB, with or without alpha), not {channels}.")
    colours = images[:, : 3 if channels > 2 else 1].float()
    finite = torch.isfinite(colours)
    if not bool(finite.all()):
        broken = [i for i, good in enumerate(finite.flatten(1).all(dim=1).tolist()) if not good]
        raise InvalidPicture(
            f"Picture {broken[0] + 1} of {len(images)} has values that are NaN or infinity: what made it went wrong."
        )
    return colours.clamp(0, 1).expand(-1, 3, -1, -1)
