"""Pictures through the EfficientNet encoder and back: what Stage B and Stage A make of the small latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning import StageBInputs
from ..images import effnet_input
from .generate import Generated
from .parts import Parts
from .sizes import latent_sizes
from .stages import STAGE_B_SETTINGS, SamplingSettings, decode, encode_prompts, sample_stage_b


def encode_effnet(net: Any, images: Tensor) -> Tensor:
    """Latents [B, 16, h, w] of pictures [B, 3, H, W] in [0, 1], with the released preprocessing (3/4 of the size)."""
    return net(effnet_input(images).to(next(net.parameters())))


@torch.no_grad()
def reconstruct(
    parts: Parts,
    images: Tensor,
    *,
    seeds: Sequence[int],
    settings: SamplingSettings = STAGE_B_SETTINGS,
    on_step: Callable[[int, int, Tensor], Any] | None = None,
) -> Generated:
    """Pictures [B, 3, H, W] in [0, 1] encoded and drawn again from their latents, without a prompt.

    parts: "text_encoder" (for the empty prompt), "effnet", "stage_b", "stage_a". In the result, `stage_c` holds the
    encoder's latents. Raises as `generate`.
    """
    if len(seeds) != len(images):
        raise ValueError(f"each picture needs a seed: {len(images)} pictures, {len(seeds)} seeds")
    height, width = images.shape[-2:]
    sizes = latent_sizes(height, width)
    empty = parts.use("text_encoder", lambda net: encode_prompts(net, [""])[""])
    effnet = parts.use("effnet", lambda net: encode_effnet(net, images))
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
            on_step=on_step,
        ),
    )
    decoded = parts.use("stage_a", lambda net: decode(net, stage_b))
    return Generated(decoded[..., :height, :width], effnet, stage_b)
