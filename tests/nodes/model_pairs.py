"""Our MODEL and the host's own with the same weights, and the host's sampling of either."""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch
from torch import Tensor

from tests.nodes import networks
from tests.nodes.networks import random

SHAPES = {"stage_c": (2, 16, 6, 5), "stage_b": (2, 4, 24, 20)}

TEXT = networks.WIDTH


@cache
def native(kind: str) -> Any:
    """The host's own MODEL with the small network's weights."""
    config = networks.CONFIGS[kind]
    levels = config.levels
    sizes = {
        "stable_cascade_stage": kind[-1],
        "c_cond": config.condition_channels,
        "c_hidden": [level.width for level in levels],
        "nhead": [level.heads for level in levels],
        "blocks": [[level.depth for level in levels], [level.depth for level in levels[::-1]]],
        "block_repeat": [[level.down_repeats for level in levels], [level.up_repeats for level in levels[::-1]]],
        "level_config": [level.pattern for level in levels],
        "dtype": torch.float32,
    }
    if kind == "stage_c":
        sizes |= {"c_clip_text": TEXT, "c_clip_text_pooled": TEXT, "c_clip_img": networks.IMAGE}
        found = comfy.supported_models.Stable_Cascade_C(sizes)
    else:
        sizes |= {"c_clip": TEXT, "dropout": [0.0] * len(levels)}
        found = comfy.supported_models.Stable_Cascade_B(sizes)
    found.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = found.get_model({}, "")
        missing, unexpected = model.diffusion_model.load_state_dict(networks.network(kind).state_dict(), strict=False)
        assert (missing, unexpected) == ([], [])
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


@cache
def ours(host: Any, kind: str, **settings: Any) -> Any:
    path = host.models / "diffusion_models" / networks.file_name(kind)
    return host.pack("nodes.host.models").load_stage(kind, path, **settings)


def conditioning(length: int = 7, seed: int = 1, batch: int = 1, **extras: Any) -> Any:
    text, pooled = random(batch, length, TEXT, seed=seed), random(batch, TEXT, seed=seed + 100)
    return [[text, {"pooled_output": pooled, **extras}]]


def sample(model: Any, kind: str, positive: Any, negative: Any, cfg: float = 4.0, **options: Any) -> Tensor:
    settings = {"sampler_name": "ddpm", "scheduler": "simple", "seed": 5} | options
    latent = torch.zeros(settings.pop("shape", SHAPES[kind]))
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            random(*latent.shape, seed=3),
            settings.pop("steps", 3),
            cfg,
            positive=positive,
            negative=negative,
            latent_image=latent,
            disable_pbar=True,
            **settings,
        )
