"""Line drawings of images, as hints for an adapter that follows sketches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

LEARNED_SIZE = 256
"""Short side in pixels at which lines are found."""
WIDTH = 2.0
"""Deviation in pixels of the blur, which decides how wide lines are."""
FAINTEST = 0.1
"""Contrast of the strongest line of an image from which on it counts as drawn; below it, lines stay gray."""


def sketch(images: Tensor, *, size: int = LEARNED_SIZE) -> Tensor:
    """White lines on black [B, 1, H, W] in [0, 1] of images [B, 3, H, W] in [0, 1].

    The difference to a blurred image (as in Winnemoeller et al. 2012, "XDoG"), in the channel where it is largest, as a
    part of the image's strongest line. An edge of a photo becomes one line, and a line of a drawing stays one,
    light or dark; `canny` gives two for it.

    Args:
        size: the images are scaled to this short side first, and the lines back to the images' size, both bilinear.
    """
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    small = (round(height * scale), round(width * scale))
    x = F.interpolate(images.detach().float().cpu(), small, mode="bilinear", antialias=True).numpy()
    blurred = ndimage.gaussian_filter(x, sigma=(0, 0, WIDTH, WIDTH), mode="nearest")
    # In the middle of an edge the difference is zero: closed.
    lines = torch.from_numpy(ndimage.grey_closing(abs(x - blurred).max(axis=1, keepdims=True), size=(1, 1, 3, 3)))
    strongest = lines.amax(dim=(1, 2, 3), keepdim=True).clamp(min=FAINTEST / 2)
    # Twice: what is half as strong as the strongest line is drawn as well.
    lines = (2 * lines / strongest).clamp(max=1).to(images.device)
    return F.interpolate(lines, (height, width), mode="bilinear", antialias=True)
