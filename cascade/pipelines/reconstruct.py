"""Images through the EfficientNet encoder and back: what Stage B and Stage A make of the small latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning import StageBInputs
from ..images import as_rgb
from ..images.resize import COMPRESSION
from .generate import Generated
from .networks import Parts
from .sizes import compression_warning, latent_sizes
from .stages import STAGE_B_SETTINGS, SamplingSettings, Tiles, decode, encode_effnet, encode_prompts, sample_stage_b

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
    on_step: Callable[[int, int, Tensor], Any] | None = None,
) -> Generated:
    """Images [B, 3, H, W] in [0, 1] encoded and drawn again from their latents, without a prompt.

    parts: "text_encoder" (for the empty prompt), "effnet", "stage_b", "stage_a". compression: pixels to a side of one
    latent. tiles: for large images. In the result, `stage_c` holds the encoder's latents. Raises as `generate`.
    """
    if len(seeds) != len(images):
        raise ValueError(f"each image needs a seed: {len(images)} images, {len(seeds)} seeds")
    images = as_rgb(images)
    height, width = images.shape[-2:]
    sizes = latent_sizes(height, width)
    empty = parts.use("text_encoder", lambda net: encode_prompts(net, [""])[""])
    effnet = parts.use("effnet", lambda net: encode_effnet(net, images, compression))
    if warning := compression_warning(effnet.shape, sizes.stage_b):
        logger.warning("%s", warning)
    inputs = StageBInputs(effnet, empty.expand(len(images)).pooled)
    stage_b = parts.use(
        "stage_b",
        lambda net: sample_stage_b(
            net,
            inputs,
            inputs.unconditional(empty),
            size=sizes.stage_b,
            seeds=seeds,
            settings=settings,
            tiles=tiles,
            on_step=on_step,
        ),
    )
    decoded = parts.use("stage_a", lambda net: decode(net, stage_b, tiles and tiles.side))
    return Generated(decoded[..., :height, :width], effnet, stage_b)
