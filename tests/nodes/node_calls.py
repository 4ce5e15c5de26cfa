"""Our loaders and samplers called without a prompt, on the small random networks."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from cascade.conditioning import TextEmbedding
from tests.nodes import networks
from tests.nodes.graphs import OPTIONS, SETTINGS
from tests.nodes.networks import file_name, random

TEXT = networks.WIDTH


def embedding(seed: int) -> TextEmbedding:
    return TextEmbedding(random(1, 9, TEXT, seed=seed), random(1, 1, TEXT, seed=seed + 100))


def conditioning(text: TextEmbedding, **extras: Any) -> Any:
    return [[text.hidden, {"pooled_output": text.pooled[:, 0], **extras}]]


POSITIVE, NEGATIVE = embedding(1), embedding(2)


@cache
def model(host: Any, kind: str) -> Any:
    extra = {"previewer": "none"} if kind == "stage_c" else {}
    node = {"stage_c": "CascadeLoadStageC", "stage_b": "CascadeLoadStageB"}[kind]
    return host.call(node, unet_name=file_name(kind), weight_dtype="fp32", **extra)[0]


def with_options(host: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings for a sampler: those that belong to Sampling Options come from that node."""
    own = {name: value for name, value in settings.items() if name not in OPTIONS}
    rare = {name: value for name, value in settings.items() if name in OPTIONS}
    return {**own, "options": host.call("CascadeSamplingOptions", **{**OPTIONS, **rare})[0]} if rare else own


def stage_c(host: Any, batch: int = 1, **changes: Any) -> Tensor:
    settings = with_options(host, {"seed": 7, "steps": 4, "cfg": 4.0, "shift": 2.0, **SETTINGS, **changes})
    given = {"latent_image": {"samples": torch.zeros(batch, 16, 5, 6)}, "model": model(host, "stage_c")}
    conds = {"positive": conditioning(POSITIVE), "negative": conditioning(NEGATIVE)}
    return host.call("CascadeSampleStageC", **{**given, **conds, **settings})[0]["samples"]


def stage_b(host: Any, small: Tensor, **changes: Any) -> Tensor:
    settings = with_options(host, {"seed": 7, "steps": 3, "cfg": 1.1, "shift": 1.0, **SETTINGS, **changes})
    conds = {"positive": conditioning(POSITIVE), "negative": conditioning(NEGATIVE)}
    given = {"model": model(host, "stage_b"), "stage_c": {"samples": small}}
    return host.call("CascadeSampleStageB", **{**given, **conds, **settings})[0]["samples"]


def images(height: int = 64, width: int = 96, batch: int = 1) -> Tensor:
    """In the host's form [B, H, W, 3]."""
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(2))


def clip(host: Any, dtype: str = "fp32") -> Any:
    return host.call("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype=dtype)[0]


def stage_a(host: Any, dtype: str = "fp32") -> Any:
    return host.call("CascadeLoadStageA", vae_name=file_name("stage_a"), weight_dtype=dtype)[0]


def coder(host: Any, vae_name: str = file_name("effnet"), previewer: str = file_name("previewer")) -> Any:
    return host.call("CascadeLoadEncoder", vae_name=vae_name, previewer=previewer, weight_dtype="fp32")[0]
