"""Pixels in, pixels out: pictures are float tensors [B, 3, H, W] in [0, 1]."""

from __future__ import annotations

from .pillow import from_pillow, to_pillow
from .resize import effnet_input, normalise, resize_short_side, three_quarters

__all__ = ["effnet_input", "from_pillow", "normalise", "resize_short_side", "three_quarters", "to_pillow"]
