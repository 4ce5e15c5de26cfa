"""Pixels in, pixels out: pictures are float tensors [B, 3, H, W] in [0, 1]."""

from __future__ import annotations

from .canny import canny
from .crop import Crop, composite, crop_to_mask, soften
from .hints import Faces, Padded, enlarge, identity_hint, inpaint_hint, outpaint, shrink, super_resolution_hint
from .pillow import from_pillow, to_pillow
from .resize import effnet_input, normalise, resize_short_side, three_quarters

__all__ = [
    "Crop",
    "Faces",
    "Padded",
    "canny",
    "composite",
    "crop_to_mask",
    "effnet_input",
    "enlarge",
    "from_pillow",
    "identity_hint",
    "inpaint_hint",
    "normalise",
    "outpaint",
    "resize_short_side",
    "shrink",
    "soften",
    "super_resolution_hint",
    "three_quarters",
    "to_pillow",
]
