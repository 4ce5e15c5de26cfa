"""Pixels in, pixels out: images are float tensors [B, 3, H, W] in [0, 1]."""

from __future__ import annotations

from .canny import canny
from .crop import Crop, composite, crop_to_mask, soften
from .hints import (
    Faces,
    Padded,
    enlarge,
    fit_hint,
    identity_hint,
    inpaint_hint,
    outpaint,
    shrink,
    super_resolution_hint,
)
from .masks import as_mask, mask_of_latent, resize_mask
from .metrics import psnr, seam_ratio, side_by_side, ssim
from .pillow import from_pillow, open_image, read_file, to_pillow
from .resize import (
    effnet_input,
    fit,
    normalize,
    resize_for_latent,
    resize_short_side,
    short_side_size,
    stage_c_input,
    three_quarters,
)
from .rgb import as_rgb
from .sketch import sketch
from .tiles import Box, blended, stitched

__all__ = [
    "Box",
    "Crop",
    "Faces",
    "Padded",
    "as_mask",
    "as_rgb",
    "blended",
    "canny",
    "composite",
    "crop_to_mask",
    "effnet_input",
    "enlarge",
    "fit",
    "fit_hint",
    "from_pillow",
    "identity_hint",
    "inpaint_hint",
    "mask_of_latent",
    "normalize",
    "open_image",
    "outpaint",
    "psnr",
    "read_file",
    "resize_for_latent",
    "resize_mask",
    "resize_short_side",
    "seam_ratio",
    "short_side_size",
    "shrink",
    "side_by_side",
    "sketch",
    "soften",
    "ssim",
    "stage_c_input",
    "stitched",
    "super_resolution_hint",
    "three_quarters",
    "to_pillow",
]
