"""IP-Adapter: image prompts by attention of their own in every block of Stage C (Ye et al. 2023, arXiv 2308.06721)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import IncompatibleCheckpoint
from .blocks import AttentionCall, AttnBlock, scaled_dot_product_attention
from .config import Config
from .layers import layer_factory
from .stage_c import StageC

KeysValues = Sequence[tuple[Tensor, Tensor]]
"""For each attention block of Stage C, keys and values [B, n, c] of an image's tokens."""


@dataclass(frozen=True, kw_only=True)
class IPAdapterConfig(Config):
    """Sizes of an IP-Adapter of one Stage C; the defaults fit the 3.6B and CLIP ViT-L/14.

    Args:
        encoder: channels of the image encoder's hidden states.
        blocks: channels of each of Stage C's attention blocks, in the order in which they run.
        tokens: that an image becomes.
        width: channels of these tokens.
        heads: of the attention by which they are made.
        depth: layers in which they are made.
    """

    encoder: int = 1024
    blocks: tuple[int, ...] = (2048,) * 64
    tokens: int = 16
    width: int = 1024
    heads: int = 16
    depth: int = 4

    def __post_init__(self) -> None:
        if min(self.encoder, self.tokens, self.width, self.heads, self.depth, *self.blocks) < 1 or not self.blocks:
            raise ValueError(f"the sizes of an IP-Adapter are numbers from 1, not {self.to_dict()}")
        if self.width % self.heads:
            raise ValueError(f"an IP-Adapter of width {self.width} cannot have {self.heads} heads")


class _ResamplerLayer(nn.Module):
    """Tokens read an image's features and themselves, then a feed-forward network (Alayrac et al. 2022, Flamingo)."""

    def __init__(self, width: int, heads: int, ops: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm_features, self.norm_tokens = ops.LayerNorm(width), ops.LayerNorm(width)
        self.to_q, self.to_k, self.to_v, self.out_proj = (ops.Linear(width, width, bias=False) for _ in range(4))
        self.feed_forward = nn.Sequential(
            ops.LayerNorm(width), ops.Linear(width, width * 4), nn.GELU(), ops.Linear(width * 4, width)
        )

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        own = self.norm_tokens(tokens)
        read = torch.cat([self.norm_features(features), own], dim=1)
        found = scaled_dot_product_attention(self.to_q(own), self.to_k(read), self.to_v(read), self.heads)
        tokens = tokens + self.out_proj(found)
        return tokens + self.feed_forward(tokens)


class IPAdapter(nn.Module):
    """Hidden states of the image encoder as tokens, and their keys and values for each attention block of Stage C."""

    def __init__(self, config: IPAdapterConfig, *, ops: Any = nn) -> None:
        super().__init__()
        ops = layer_factory(ops)
        self.config = config
        self.mapper = ops.Linear(config.encoder, config.width)
        self.queries = nn.Parameter(torch.empty(1, config.tokens, config.width))
        self.layers = nn.ModuleList(_ResamplerLayer(config.width, config.heads, ops) for _ in range(config.depth))
        self.norm = ops.LayerNorm(config.width)
        self.to_k, self.to_v = (
            nn.ModuleList(ops.Linear(config.width, width, bias=False) for width in config.blocks) for _ in range(2)
        )

    def forward(self, features: Tensor) -> KeysValues:
        """Keys and values of images, from their features [B, n, encoder] (`ImageEncoder.hidden_states`)."""
        features = self.mapper(features)
        tokens = self.queries.to(features).expand(len(features), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, features)
        tokens = self.norm(tokens)
        return [(to_k(tokens), to_v(tokens)) for to_k, to_v in zip(self.to_k, self.to_v, strict=True)]


def attention_widths(net: StageC) -> tuple[int, ...]:
    """Channels of each attention block, in the order in which they run: an adapter's `blocks`."""
    return tuple(block.attention.attn.to_q.out_features for block in net.blocks(AttnBlock))


def check_stage_c(blocks: Sequence[int], net: StageC) -> None:
    """Raises IncompatibleCheckpoint for an adapter of these `blocks` and another Stage C."""
    found = attention_widths(net)
    if tuple(blocks) != found:
        raise IncompatibleCheckpoint(
            f"this IP-Adapter was trained for a Stage C of {_described(blocks)}; this one has {_described(found)}: "
            "choose the adapter of this Stage C"
        )


def check_encoder(config: IPAdapterConfig, channels: int) -> None:
    """Raises IncompatibleCheckpoint for an adapter of another image encoder than one whose hidden states have so many
    channels."""
    if config.encoder != channels:
        raise IncompatibleCheckpoint(
            f"this IP-Adapter reads an image encoder {config.encoder} channels wide; this one is {channels} wide: "
            "choose the image encoder that the adapter was trained with"
        )


def _described(blocks: Sequence[int]) -> str:
    return f"{len(blocks)} attention blocks, {' and '.join(map(str, sorted(set(blocks))))} wide"


def image_attention(block: AttentionCall, k: Tensor, v: Tensor) -> Tensor:
    """What a block's queries find [B, h w, c] in an image's tokens, by their keys and values [1 or B, n, c] (eq. 5,
    its second term)."""
    k, v = (x.expand(len(block.q), -1, -1) for x in (k, v))
    return block.attend(block.q, k, v, block.heads)
