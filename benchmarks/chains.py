"""What the models of docs/chains.md cost: parameters, operations, memory. Nothing is run: all tensors are on `meta`.

    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/chains.py    # below a minute

Operations are those of matrix products, convolutions and attention, one multiplication and addition counted as two,
for one image with cfg (two calls a step) at the steps of the templates. Memory is the weights in 16 bits and what
ComfyUI's own formula estimates for a call, where it is used.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, os.environ["COMFYUI_PATH"])

import torch
from common import print_table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cascade.models import STAGE_A, STAGE_B_1_5B, STAGE_C_3_6B, StageA, StageB, StageC

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": 2,
    "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
    "legacy": False,
}
UPSCALER = UNET | {
    "in_channels": 7,
    "model_channels": 256,
    "channel_mult": (1, 2, 2, 4),
    "transformer_depth": [0, 0, 1, 1, 1, 1, 1, 1],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "disable_self_attentions": [True, True, True, False],
    "num_classes": 1000,
    "num_heads": 8,
    "num_head_channels": -1,
}


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def row(name: str, net: nn.Module, calls: int, call: Any, estimate: float = 0.0) -> list[str]:
    """A line of the table; `estimate` in bytes for a call, beside the weights, where ComfyUI's formula is used."""
    parameters = sum(each.numel() for each in net.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(net)
    operations = counter.get_total_flops() * calls / 1e12
    numbers = f"{parameters / 1e6:,.0f} M", f"{parameters * 2 / 1e9:.1f} GB", f"{operations:,.0f}"
    return [name, *numbers, f"{estimate / 1e9:.1f} GB" if estimate else ""]


def host_estimate(latent: int, factor: float = 1.0) -> float:
    """`memory_required` of ComfyUI's base model for two latents of this side, in 16 bits."""
    return 2 * latent**2 * 2 * 0.01 * factor * 1024**2


def unet(config: dict[str, Any], latent: int) -> Any:
    def call(net: nn.Module) -> None:
        classes = {"y": meta(2).long()} if "num_classes" in config else {}
        net(meta(2, config["in_channels"], latent, latent), meta(2), context=meta(2, 77, 1024), **classes)

    return call


def host_networks() -> tuple[nn.Module, nn.Module, nn.Module]:
    """SD 2.1's UNet, the upscaler's, and the VAE."""
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    vae = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    vae |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    return UNetModel(**UNET), UNetModel(**UPSCALER), AutoencoderKL(ddconfig=vae, embed_dim=4)


def main() -> None:
    with torch.device("meta"):
        c, b, a = StageC(STAGE_C_3_6B), StageB(STAGE_B_1_5B), StageA(STAGE_A)
        sd, x4, vae = host_networks()
    text = {"clip_text": meta(2, 77, 1280), "clip_text_pooled": meta(2, 1, 1280), "clip_img": meta(2, 1, 768)}
    stage_b = meta(2, 4, 256, 256), meta(2), meta(2, 16, 24, 24), meta(2, 1, 1280)
    rows = [
        row("Stage C 3.6B, 1024", c, 20, lambda n: n(meta(2, 16, 24, 24), meta(2), **text)),
        row("Stage B 1.5B, 1024", b, 10, lambda n: n(*stage_b)),
        row("Stage A, decode 1024", a, 1, lambda n: n.decode(meta(1, 4, 256, 256))),
        row("SD 2.1, 768, 25 steps", sd, 25, unet(UNET, 96), host_estimate(96)),
        row("SD 2.1, 1024, 25 steps", sd, 25, unet(UNET, 128), host_estimate(128)),
        row("SD x4 upscaler, 2048, 30 steps", x4, 30, unet(UPSCALER, 512), host_estimate(512)),
        row("SD x4 upscaler, 4096, 30 steps", x4, 30, unet(UPSCALER, 1024), host_estimate(1024)),
        row("VAE, decode 1024", vae, 1, lambda n: n.decode(meta(1, 4, 128, 128))),
    ]
    print_table(["model", "parameters", "weights", "TFLOP an image", "working memory"], rows)


if __name__ == "__main__":
    main()
