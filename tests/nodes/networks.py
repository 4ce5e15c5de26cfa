"""A small cascade of random networks, in the files that people have."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade import models
from cascade.checkpoints import ClipTextConfig, ClipVisionConfig, convert, save_model
from cascade.conditioning import TextEmbedding
from cascade.models.effnet import EffnetStage
from cascade.pipelines import StagePlan, sample_stage_b, sample_stage_c
from tests.support import NETWORKS

WIDTH = 24
"""Of the text embeddings."""
IMAGE = 768
"""Of the image embedding; the host's own Stage C knows no other."""

CONFIGS = {
    "stage_c": models.StageCConfig(
        condition_channels=32,
        clip_text=WIDTH,
        clip_text_pooled=WIDTH,
        clip_img=IMAGE,
        levels=(models.Level(64, 1, 1), models.Level(64, 1, 2)),
    ),
    "stage_b": models.StageBConfig(
        condition_channels=32,
        clip=WIDTH,
        levels=(models.Level(16, 0, 1, "CT", up_repeats=2), models.Level(64, 1, 1, up_repeats=2)),
    ),
    "stage_a": models.StageAConfig(width=16, bottleneck_blocks=1, codebook_size=16),
    "effnet": models.EffnetConfig(
        stem=8, stages=tuple(EffnetStage(True, 1, stride, 8, 1) for stride in (1, 2, 2, 2, 1, 2)), head=16
    ),
    "previewer": models.PreviewerConfig(width=16),
}
CLIP = {
    "text_encoder": ClipTextConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, projection_dim=WIDTH
    ),
    "image_encoder": ClipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=IMAGE,
        image_size=28,
        patch_size=14,
    ),
}
FOLDERS = {
    "stage_c": "diffusion_models",
    "stage_b": "diffusion_models",
    "stage_a": "vae",
    "effnet": "vae",
    "previewer": "vae",
    "text_encoder": "text_encoders",
    "image_encoder": "clip_vision",
}


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def file_name(kind: str) -> str:
    return f"small_{kind}.safetensors"


@cache
def network(kind: str) -> nn.Module:
    """The random network of a kind, the same every time; every weight makes a difference."""
    torch.manual_seed(sum(map(ord, kind)))
    if kind in CLIP:
        net = CLIP[kind].network()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
        return net.eval().requires_grad_(False)
    net = models.initialize(NETWORKS[kind][0](CONFIGS[kind]))
    for name, parameter in net.named_parameters():
        if name.startswith("clf.1") or ".mapper" in name or name.endswith(("gammas", "bias", "gamma", "beta")):
            nn.init.normal_(parameter, std=0.1)
    return net.eval().requires_grad_(False)


def write(folder: Path) -> None:
    """Loose files in ComfyUI's folders, both merged checkpoints, and a folder of diffusers."""
    paths = {kind: folder / place / file_name(kind) for kind, place in FOLDERS.items()}
    for kind, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(network(kind), path)
    merged = {
        "small_c.safetensors": ("stage_c", "text_encoder", "effnet", "previewer", "image_encoder"),
        "small_b.safetensors": ("stage_b", "stage_a", "text_encoder"),
    }
    for name, kinds in merged.items():
        convert([paths[kind] for kind in kinds], folder / "checkpoints" / name, layout="comfyui")


def library_sample(kind: Any, cond: Any, uncond: TextEmbedding, **plan: Any) -> Tensor:
    """What the library samples with the small network of a stage; `uncond` is the negative prompt's embedding."""
    sample = {"stage_c": sample_stage_c, "stage_b": sample_stage_b}[kind]
    net: Any = network(kind)
    with torch.no_grad():
        return sample(net, StagePlan(stage=kind, cond=cond, uncond=cond.unconditional(uncond), **plan))
