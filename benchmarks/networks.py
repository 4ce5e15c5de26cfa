"""Our networks against diffusers' on this machine: same random weights, same inputs, both sides taking turns.

    python benchmarks/networks.py            # about 10 minutes on two cores, 7 GB of memory
    python benchmarks/networks.py --small    # a trial of the script in seconds

Rows: a guided Stage C step (1B, 24 x 24: one batch of prompt and negative prompt), a Stage B forward (700M, 64 x 64),
a Stage A decode (256 x 256), in float32 and bfloat16. What depends on the conditions alone is computed once in a run of
many steps; the rows "once a run left out" show a step without it. Errors are against diffusers' float32 output,
relative to its maximum; in float32 they must be below 1e-4, or the script fails.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import (
    SMALL_B,
    SMALL_C,
    arguments,
    difference,
    interleaved,
    machine,
    print_table,
    with_random_weights,
)
from diffusers import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from torch import Tensor, nn

from cascade.models import (
    STAGE_A,
    STAGE_B_700M,
    STAGE_C_1B,
    StageA,
    StageB,
    StageBConfig,
    StageC,
    StageCConfig,
)

AGREE = 1e-4
BLOCKS = {"C": "SDCascadeResBlock", "T": "SDCascadeTimestepBlock", "A": "SDCascadeAttnBlock"}
RENAMED = (
    ("attention.attn.out_proj", "attention.to_out.0"),
    ("attention.attn.", "attention."),
    ("vquantizer.codebook", "vquantizer.embedding"),
)


HEAD = ["", "dtype", "measured", "diffusers", "ours", "ratio", "error, diffusers", "error, ours"]


@dataclass
class Row:
    """One comparison; `cached` is ours with what a run computes once left out (None where there is nothing)."""

    name: str
    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    cached: Callable[[], Tensor] | None = None


def with_our_weights(build: Callable[[], nn.Module], ours: nn.Module, **renamed: str) -> nn.Module:
    """diffusers' network with the very tensors of ours, so that both fit into memory."""
    tensors = {}
    for name, tensor in ours.state_dict().items():
        for old, new in (*RENAMED, *renamed.items()):
            name = name.replace(old, new)
        tensors[name] = tensor
    with torch.device("meta"):
        theirs = build()
    theirs.load_state_dict(tensors, assign=True)
    return theirs.eval().requires_grad_(False)


def diffusers_config(config: StageCConfig | StageBConfig) -> dict[str, Any]:
    levels = config.levels
    return {
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "patch_size": config.patch_size,
        "conditioning_dim": config.condition_channels,
        "block_out_channels": [level.width for level in levels],
        "num_attention_heads": [level.heads for level in levels],
        "down_num_layers_per_block": [level.depth for level in levels],
        "up_num_layers_per_block": [level.depth for level in levels[::-1]],
        "down_blocks_repeat_mappers": [level.down_repeats for level in levels],
        "up_blocks_repeat_mappers": [level.up_repeats for level in levels[::-1]],
        "block_types_per_layer": [[BLOCKS[kind] for kind in level.pattern] for level in levels],
        "timestep_conditioning_type": list(config.timestep_conditions),
        "clip_seq": config.condition_tokens,
        "dropout": [0.0] * len(levels),
    }


def stage_c(small: bool, dtype: torch.dtype) -> Row:
    torch.manual_seed(0)
    config, side = (SMALL_C, 6) if small else (STAGE_C_1B, 24)
    with torch.device("meta"):
        ours = StageC(config)
    ours = with_random_weights(ours).to(dtype)
    clip = {"clip_text_in_channels": config.clip_text, "clip_image_in_channels": config.clip_img}
    kwargs = diffusers_config(config) | clip | {"switch_level": list(config.switch_level)}
    theirs = with_our_weights(lambda: StableCascadeUNet(**kwargs), ours)
    x, r = torch.randn(2, 16, side, side).to(dtype), torch.full((2,), 0.5)
    text = torch.randn(2, 77, config.clip_text).to(dtype)
    pooled, image = torch.randn(2, 1, config.clip_text_pooled).to(dtype), torch.randn(2, 1, config.clip_img).to(dtype)
    conditions = ours.conditions(text, pooled, image)
    return Row(
        f"Stage C guided step, {side} x {side}",
        lambda: theirs(x, r.to(dtype), clip_text_pooled=pooled, clip_text=text, clip_img=image).sample,
        lambda: ours(x, r, text, pooled, image),
        lambda: ours.denoise(x, r, conditions),
    )


def stage_b(small: bool, dtype: torch.dtype) -> Row:
    torch.manual_seed(0)
    config, side = (SMALL_B, 16) if small else (STAGE_B_700M, 64)
    with torch.device("meta"):
        ours = StageB(config)
    ours = with_random_weights(ours).to(dtype)
    extra = {"effnet_in_channels": config.effnet, "pixel_mapper_in_channels": config.pixels}
    kwargs = diffusers_config(config) | extra
    theirs = with_our_weights(lambda: StableCascadeUNet(**kwargs), ours, clip_mapper="clip_txt_pooled_mapper")
    x, r = torch.randn(1, 4, side, side).to(dtype), torch.full((1,), 0.5)
    effnet, pooled = torch.randn(1, 16, 6, 6).to(dtype), torch.randn(1, 1, config.clip).to(dtype)
    conditions = ours.conditions(effnet, pooled, size=(side, side))
    return Row(
        f"Stage B step, {side} x {side}",
        lambda: theirs(x, r.to(dtype), clip_text_pooled=pooled, effnet=effnet).sample,
        lambda: ours(x, r, effnet, pooled),
        lambda: ours.denoise(x, r, conditions),
    )


def stage_a(small: bool, dtype: torch.dtype) -> Row:
    torch.manual_seed(0)
    side = 64 if small else 256
    with torch.device("meta"):
        ours = StageA(STAGE_A)
    ours = with_random_weights(ours).to(dtype)
    theirs = with_our_weights(PaellaVQModel, ours)
    latents = torch.randn(1, 4, side // 4, side // 4).to(dtype)
    return Row(
        f"Stage A decode, {side} x {side}",
        lambda: theirs.decode(latents * ours.config.scale_factor).sample,
        lambda: ours.decode(latents),
    )


def measure(row: Row, expected: Tensor, dtype: torch.dtype, repeats: int) -> Iterator[list[str]]:
    """The table's lines of one row; stops the script where the two sides do not agree in float32."""
    sides = {"diffusers": row.theirs, "whole": row.ours}
    if row.cached is not None:
        sides["once a run left out"] = row.cached
    apart = {name: difference(run(), expected) for name, run in sides.items()}
    if dtype == torch.float32 and max(apart.values()) > AGREE:
        raise SystemExit(f"{row.name}: the outputs differ by {apart}")
    seconds = interleaved(sides, repeats)
    theirs = seconds.pop("diffusers")
    for name, ours in seconds.items():
        cells = [row.name, str(dtype).removeprefix("torch."), name, f"{theirs:.3f} s", f"{ours:.3f} s"]
        yield [*cells, f"{ours / theirs:.3f}", f"{apart['diffusers']:.0e}", f"{apart[name]:.0e}"]


@torch.inference_mode()
def main() -> None:
    options = arguments(__doc__ or "", repeats=5)
    lines = []
    for build in (stage_c, stage_b, stage_a):
        row = build(options.small, torch.float32)
        expected = row.theirs()
        lines += measure(row, expected, torch.float32, options.repeats)
        del row
        gc.collect()
        lines += measure(build(options.small, torch.bfloat16), expected, torch.bfloat16, options.repeats)
        gc.collect()
    print(f"{machine()}; median of {options.repeats} runs of each side\n")
    print_table(HEAD, lines)


if __name__ == "__main__":
    main()
