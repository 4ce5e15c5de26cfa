"""Pillow images and tensors."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def from_pillow(image: Image.Image) -> Tensor:
    """[1, 3, H, W] in [0, 1]; rotated by its EXIF orientation, without alpha, in 16 bits if it has them."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow clips values above 255 when it converts these modes.
        gray = torch.from_numpy(np.array(upright).astype(np.float32)) / 65535
        return gray.clamp(0, 1).expand(1, 3, *gray.shape).clone()
    return torch.from_numpy(np.array(upright.convert("RGB"))).movedim(-1, 0)[None].float() / 255


def to_pillow(image: Tensor) -> Image.Image:
    """An image of [3, H, W]; values outside [0, 1] are clipped."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).cpu().numpy())
