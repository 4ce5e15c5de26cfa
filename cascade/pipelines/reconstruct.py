"""Images through the EfficientNet encoder and back: what Stage B and Stage A make of Stage C's latents."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..diffusion import SamplingSettings
from ..images import as_rgb
from ..images.resize import COMPRESSION
from .generate import Generated, OnProgress, Run, Settings
from .networks import Parts
from .plan import STAGE_B_SETTINGS, Tiles
from .sizes import compression_warning
from .stages import encode_effnet, encode_prompts

logger = logging.getLogger("cascade")


@torch.no_grad()
def reconstruct(
    parts: Parts,
    images: Tensor,
    *,
    seeds: Sequence[int],
    settings: SamplingSettings = STAGE_B_SETTINGS,
    compression: float = COMPRESSION,
    tiles: Tiles | None = None,
    on_progress: OnProgress | None = None,
) -> Generated:
    """Images [B, 3, H, W] in [0, 1] encoded and generated again from their latents, without a prompt.

    parts: "text_encoder" (for the empty prompt), "effnet", "stage_b", "stage_a". compression: pixels of an image per
    position of Stage C's latent, along a side. tiles: for large images. In the result, `stage_c` holds the encoder's
    latents. Raises as `generate`.
    """
    if len(seeds) != len(images):
        raise ValueError(f"each image needs a seed: {len(images)} images, {len(seeds)} seeds")
    images = as_rgb(images)
    height, width = images.shape[-2:]
    whole = Settings(width=width, height=height, stage_b=settings, tiles=tiles)
    sizes = whole.sizes
    empty = parts.use("text_encoder", lambda net: encode_prompts(net, [""])[""])
    stage_c = parts.use("effnet", lambda net: encode_effnet(net, images, compression))
    if warning := compression_warning(stage_c.shape, sizes.stage_b):
        logger.warning("%s", warning)
    run = Run(texts=[empty] * len(images), negative=empty, seeds=seeds, settings=whole, on_progress=on_progress)
    return run.from_stage_c(parts, stage_c)
