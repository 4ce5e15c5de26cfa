"""A whole cascade of random networks, small enough to run in a test."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from cascade import models
from cascade.adapters import InstructNetwork, Lora, LowRank
from cascade.models.blocks import ResBlock
from cascade.models.effnet import EffnetStage
from cascade.models.ip_adapter import attention_widths
from tests.support import NETWORKS

TEXT, POOLED, IMAGE = 16, 12, 8

CONFIGS = {
    "stage_c": models.StageCConfig.from_reference(
        c_cond=16,
        c_hidden=(16, 16),
        nhead=(2, 2),
        blocks=((1, 1), (1, 1)),
        c_clip_text=TEXT,
        c_clip_text_pooled=POOLED,
        c_clip_img=IMAGE,
    ),
    "stage_b": models.StageBConfig.from_reference(
        c_cond=16,
        c_hidden=(8, 16),
        nhead=(-1, 2),
        blocks=((1, 1), (1, 1)),
        block_repeat=((1, 1), (1, 1)),
        level_config=("CT", "CTA"),
        dropout=(0, 0),
        c_clip=POOLED,
    ),
    "stage_a": models.StageAConfig(width=8, bottleneck_blocks=1, codebook_size=16),
    "effnet": models.EffnetConfig(
        stem=4, stages=tuple(EffnetStage(True, 1, stride, 4, 1) for stride in (1, 2, 2, 2, 1, 2)), head=8
    ),
}


@cache
@torch.random.fork_rng(devices=[])
def part(kind: str) -> nn.Module:
    """The small network of a kind, the same every time."""
    torch.manual_seed(sum(map(ord, kind)))
    if kind in ("text_encoder", "image_encoder"):
        return (text_encoder() if kind == "text_encoder" else image_encoder()).requires_grad_(False)
    net = models.initialize(NETWORKS[kind][0](CONFIGS[kind]))
    for name, parameter in net.named_parameters():
        # A fresh network predicts zeros and hears no timestep; these must make a difference.
        if name.startswith("clf.1") or ".mapper" in name or name.endswith("gammas"):
            nn.init.normal_(parameter, std=0.3)
    return net.eval().requires_grad_(False)


def prior() -> models.Prior:
    """A random prior for the small encoders."""
    config = models.PriorConfig(
        clip_img=IMAGE, clip_text=TEXT, clip_text_pooled=POOLED, width=16, heads=2, depth=2, timestep_channels=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = models.initialize(models.Prior(config))
        for name, parameter in net.named_parameters():
            if name.startswith("out") or ".mapper" in name:
                nn.init.normal_(parameter, std=0.3)
    return net.eval().requires_grad_(False)


def instruct_network(net: Any = None) -> InstructNetwork:
    """A random one for a Stage C, the small one if none is given: both its parts make a difference."""
    net = part("stage_c") if net is None else net
    width, blocks = net.config.levels[0].width, len(net.blocks(ResBlock))
    config = models.ControlNetConfig(
        in_channels=16, width=width, blocks=(0, blocks - 1), backbone="large", features=8, inside=(16, 8), depth=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        control = models.initialize(models.ControlNet(config))
        for projection in control.projections:
            nn.init.normal_(projection[2].weight, std=0.1)
        weights = {name: value for name, value in net.state_dict().items() if name.endswith("to_v.weight")}
        changes = {
            name: LowRank(torch.randn(2, weight.shape[1]), 0.1 * torch.randn(weight.shape[0], 2), 2.0)
            for name, weight in weights.items()
        }
    return InstructNetwork(control.eval().requires_grad_(False), Lora({"stage_c": changes}))


def ip_adapter(net: Any = None, encoder: int = 16) -> models.IPAdapter:
    """A random one for a Stage C, the small one if none is given, that makes a difference."""
    blocks = attention_widths(part("stage_c") if net is None else net)
    config = models.IPAdapterConfig(encoder=encoder, blocks=blocks, tokens=3, width=8, heads=2, depth=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        adapter: Any = models.initialize(models.IPAdapter(config))
        for to_v in adapter.to_v:
            nn.init.normal_(to_v.weight)
    return adapter.eval().requires_grad_(False)


def small_cascade() -> dict[str, nn.Module]:
    """kind -> network, of all that `generate` and `reconstruct` can use."""
    return {kind: part(kind) for kind in ("text_encoder", "image_encoder", *CONFIGS)}


def text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=TEXT,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=POOLED,
        initializer_factor=10.0,
        eos_token_id=49407,
    )
    return CLIPTextModelWithProjection(config).eval()


def image_encoder() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=IMAGE,
        image_size=28,
        patch_size=14,
        initializer_factor=10.0,
    )
    return CLIPVisionModelWithProjection(config).eval()
