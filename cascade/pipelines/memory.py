"""How much memory a step of Stage C or Stage B takes, and whether it is there, before a run starts."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

from ..errors import InvalidSize
from ..images.resize import COMPRESSION
from ..models import StageB, StageBConfig, StageC, StageCConfig
from .sizes import STAGE_B_FACTOR

USABLE = 0.7
"""The part of a device's memory that a step may take."""


def step_bytes(config: StageCConfig | StageBConfig, shape: Sequence[int], itemsize: int) -> float:
    """Bytes of a call with latents [B, c, h, w] of this shape, in addition to the weights.

    The widest level's activations, and what is kept for the run. itemsize: bytes of a number of the network.
    """
    patch = config.patch_size
    positions = shape[0] * (-(-shape[-2] // patch)) * (-(-shape[-1] // patch))
    activations, kept = 0.0, 0.0
    for number, level in enumerate(config.levels):
        tokens = positions / 4**number if patch > 1 else positions
        # The MLP holds three tensors of four times the width, the residual and the skips a few of the width itself.
        activations = max(activations, tokens * level.width * 16)
        kept += tokens * level.width * 2
        if level.heads:
            kept += shape[0] * 100 * level.width * 4 * level.depth
    return (activations + kept) * itemsize


def check_fits(stage: str, shape: Sequence[int], needed: float, total: float, instead: str) -> None:
    """Raises InvalidSize where a step takes more than the usable part of a device's memory, with a size that would fit.

    shape: of the latents of all images [B, c, h, w]. needed, total: bytes. instead: what else would help.
    """
    usable = total * USABLE
    if needed <= usable:
        return
    pixels = COMPRESSION if stage == "Stage C" else STAGE_B_FACTOR
    height, width = (round(side * pixels) for side in shape[-2:])
    fits = " x ".join(str(int(side * math.sqrt(usable / needed)) // 64 * 64) for side in (width, height))
    raise InvalidSize(
        f"A step of {stage} at {width} x {height} pixels and a batch of {shape[0]} would take about "
        f"{needed / 1e9:.1f} GB, and {usable / 1e9:.1f} GB can be used. About {fits} would fit, or {instead}."
    )


def check_network(net: StageC | StageB, shape: Sequence[int], instead: str = "a smaller batch") -> None:
    """As `check_fits`, for a Stage C or Stage B where it is; both prompts of a step run at once."""
    parameter = next(net.parameters())
    total = total_memory(parameter.device)
    if total is None:
        return
    stage = "Stage C" if isinstance(net.config, StageCConfig) else "Stage B"
    needed = step_bytes(net.config, (2 * shape[0], *shape[1:]), parameter.element_size())
    check_fits(stage, shape, needed, total, instead)


def total_memory(device: torch.device) -> int | None:
    """Bytes of a device's memory; None where it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
