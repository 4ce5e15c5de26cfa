"""Initial weights for training. Constructors do not initialize weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .blocks import BatchNorm2d, FeedForwardBlock, GlobalResponseNorm, ResBlock, TimestepBlock
from .controlnet import ControlNet
from .high_res import HighResGuide
from .ip_adapter import IPAdapter
from .prior import Prior
from .stack import Stack
from .stage_a import ModulatedResBlock, VectorQuantizer
from .stage_b import StageB
from .stage_c import StageC


@torch.no_grad()
def initialize(net: nn.Module) -> nn.Module:
    """Initializes all weights and buffers of a network of `cascade.models`, as in the released trainings; returns net.

    Random numbers come from torch's global generator.
    """
    for module in net.modules():
        _initialize_layer(module)
    if isinstance(net, Stack):
        _initialize_stack(net)
    if isinstance(net, Prior):
        _initialize_prior(net)
    for module in net.modules():
        if isinstance(module, HighResGuide):
            _initialize_guide(module)
    if isinstance(net, ControlNet):
        for projection in net.projections:
            # Zero residuals: training starts from the network as it is without control.
            _zero(projection.get_submodule("2"))
    if isinstance(net, IPAdapter):
        nn.init.normal_(net.queries, std=net.config.width**-0.5)
        for to_v in net.to_v:
            # Nothing is found in an image: training starts from the network as it is without one.
            nn.init.zeros_(to_v.get_parameter("weight"))
    return net


def _initialize_layer(module: nn.Module) -> None:
    match module:
        case nn.Linear() | nn.Conv2d() | nn.ConvTranspose2d():
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        case BatchNorm2d():
            nn.BatchNorm2d.reset_parameters(module)
        case nn.LayerNorm():
            nn.LayerNorm.reset_parameters(module)
        case GlobalResponseNorm():
            nn.init.zeros_(module.gamma)
            nn.init.zeros_(module.beta)
        case ModulatedResBlock():
            nn.init.zeros_(module.gammas)
        case VectorQuantizer():
            entries = module.entries
            nn.init.uniform_(entries, -1 / len(entries), 1 / len(entries))


def _initialize_stack(net: Stack) -> None:
    mappers: list[Any] = []
    if isinstance(net, StageC):
        mappers = [net.clip_txt_mapper, net.clip_txt_pooled_mapper, net.clip_img_mapper]
    elif isinstance(net, StageB):
        mappers = [net.clip_mapper, *(m[i] for m in (net.effnet_mapper, net.pixels_mapper) for i in (0, 2))]
    for mapper in mappers:
        nn.init.normal_(mapper.weight, std=0.02)
    embedding: Any = net.embedding[1]
    nn.init.xavier_uniform_(embedding.weight, 0.02)
    _zero(net.clf[1])
    depth = sum(level.depth for level in net.config.levels)
    for block in net.blocks(ResBlock) + net.blocks(FeedForwardBlock):
        block.channelwise[-1].get_parameter("weight").mul_(math.sqrt(1 / depth))
    for block in net.blocks(TimestepBlock):
        for layer in block.children():
            _zero(layer)


def _initialize_prior(net: Prior) -> None:
    nn.init.zeros_(net.mean)
    nn.init.ones_(net.std)
    _zero(net.out)
    for block in net.modules():
        if isinstance(block, FeedForwardBlock):
            block.channelwise[-1].get_parameter("weight").mul_(math.sqrt(1 / net.config.depth))
        elif isinstance(block, TimestepBlock):
            _zero(block.mapper)


def _initialize_guide(guide: HighResGuide) -> None:
    """Weights of the coordinate network are normalized, so that their size does not matter; what is added is zero."""
    for table in (guide.wtokens, guide.tokenizer.posemb):
        nn.init.normal_(table, std=0.02)
    for base in guide.base_params.values():
        nn.init.xavier_uniform_(base[:-1])
        nn.init.zeros_(base[-1])
    for modulation in (guide.mapp_t, guide.hr_norm.mapping):
        _zero(modulation.mapper)
    # y + (y (1 + a) + b): zero at a = -2, b = 0.
    nn.init.constant_(guide.hr_norm.mapping.mapper.bias[: guide.config.stage_c_width], -2.0)


def _zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
