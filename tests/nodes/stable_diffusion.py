"""Checkpoints of Stable Diffusion 2.x with random weights, in the files that people have.

ComfyUI recognizes these models by their widths, which therefore stay; there are fewer blocks. The encoders are
built at their full depth whatever a file holds: their later blocks are zeros here, which a file system need not store,
and which change nothing in a residual network.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
TEXT, VISION = 1024, 1280
"""Widths of OpenCLIP's ViT-H: text, image."""
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 0],
    "transformer_depth_middle": 1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": TEXT,
    "legacy": False,
}
PREDICTS_V = {"v", "unclip"}
V_SIGN = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
"""ComfyUI tells v-prediction from noise prediction by how much this bias varies."""
DEEP = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 1, 1],
    "transformer_depth": [1, *[0] * 7],
    "transformer_depth_output": [1, *[0] * 11],
}
"""As many output blocks as V_SIGN needs."""
UNETS: dict[str, dict[str, Any]] = {
    "base": {},
    "v": DEEP,
    "inpaint": {"in_channels": 9},
    "depth": {"in_channels": 5},
    "unclip": {**DEEP, "num_classes": "sequential", "adm_in_channels": 2048},
    "x4": {
        "in_channels": 7,
        "model_channels": 256,
        "num_res_blocks": [1, 1, 1, 1],
        "channel_mult": [1, 1, 1, 1],
        "transformer_depth": [1, 0, 0, 0],
        "transformer_depth_output": [1, *[0] * 7],
        "disable_self_attentions": [True, True, True, False],
        "num_classes": 1000,
        "num_heads": 8,
        "num_head_channels": -1,
    },
    "lotus": {"num_classes": "sequential", "adm_in_channels": 4},
}
FILES = {
    "base": "v2-1_512-ema-pruned.safetensors",
    "v": "v2-1_768-ema-pruned.safetensors",
    "inpaint": "512-inpainting-ema.safetensors",
    "depth": "512-depth-ema.safetensors",
    "unclip": "sd21-unclip-h.safetensors",
    "x4": "x4-upscaler-ema.safetensors",
}
"""Checkpoints, by the names of the released files; that of unCLIP is a .ckpt."""


def unet(kind: str) -> Shapes:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return _of("model.diffusion_model.", UNetModel(**{**UNET, **UNETS[kind]}, device="meta"))


def controlnet() -> Shapes:
    from comfy.cldm.cldm import ControlNet

    sizes = {name: value for name, value in UNET.items() if name not in ("out_channels", "transformer_depth_output")}
    return _of("control_model.", ControlNet(**sizes, hint_channels=3, device="meta"))


def vae(levels: int = 4) -> Shapes:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    config = {**sizes, "ch_mult": [1, 2, 4, 4][:levels], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        return _of("first_stage_model.", AutoencoderKL(ddconfig=config, embed_dim=4))


def text_encoder() -> Shapes:
    prefix = "cond_stage_model.model."
    return {
        f"{prefix}positional_embedding": (77, TEXT),
        f"{prefix}text_projection": (TEXT, TEXT),
        f"{prefix}token_embedding.weight": (49408, TEXT),
        **_norm(f"{prefix}ln_final", TEXT),
        **_blocks(prefix, TEXT, 24),
    }


def image_encoder() -> Shapes:
    prefix = "embedder.model.visual."
    return {
        f"{prefix}class_embedding": (VISION,),
        f"{prefix}positional_embedding": (257, VISION),
        f"{prefix}proj": (VISION, TEXT),
        f"{prefix}conv1.weight": (VISION, 3, 14, 14),
        **_norm(f"{prefix}ln_pre", VISION),
        **_norm(f"{prefix}ln_post", VISION),
        **_blocks(prefix, VISION, 32),
    }


def _of(prefix: str, net: torch.nn.Module) -> Shapes:
    return {f"{prefix}{name}": tuple(value.shape) for name, value in net.state_dict().items()}


def _norm(prefix: str, width: int) -> Shapes:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _blocks(prefix: str, width: int, number: int) -> Shapes:
    found: Shapes = {}
    for block in (f"{prefix}transformer.resblocks.{i}." for i in range(number)):
        found |= {**_norm(f"{block}ln_1", width), **_norm(f"{block}ln_2", width)}
        found |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        found |= {f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,)}
        found |= {f"{block}mlp.c_fc.weight": (4 * width, width), f"{block}mlp.c_fc.bias": (4 * width,)}
        found |= {f"{block}mlp.c_proj.weight": (width, 4 * width), f"{block}mlp.c_proj.bias": (width,)}
    return found


def shapes_of(kind: str) -> Shapes:
    """All tensors of a checkpoint, with the names of the released files."""
    found = unet(kind) | vae(3 if kind == "x4" else 4) | text_encoder()
    return found | image_encoder() if kind == "unclip" else found


def write(folder: Path, kind: str) -> Path:
    """The file of a kind in a folder, with the name of the released one."""
    path = folder / FILES[kind]
    write_tensors(path, shapes_of(kind), v=kind in PREDICTS_V)
    return path


def write_tensors(path: Path, shapes: Shapes, *, v: bool = False) -> None:
    """A file of safetensors in float16 with random tensors; `v` marks a UNet as one that predicts v."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    told = json.dumps(header).encode()
    generator = torch.Generator().manual_seed(1)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(told)) + told)
        for name, shape in shapes.items():
            if _is_zero(name):
                file.seek(2 * torch.Size(shape).numel(), 1)
            else:
                spread = 0.3 if v and name.endswith(V_SIGN) else 0.02
                file.write(_random(name, shape, spread, generator).half().numpy().tobytes())
        file.truncate()


def _is_zero(name: str) -> bool:
    return ".resblocks." in name and ".resblocks.0." not in name


def _random(name: str, shape: tuple[int, ...], spread: float, generator: torch.Generator) -> Tensor:
    value = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return value * spread + (1.0 if name.endswith("weight") and "embedding" not in name else 0.0)
    return value * torch.Size(shape[1:]).numel() ** -0.5
