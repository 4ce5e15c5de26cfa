"""The prior: from a text embedding to an image embedding, by diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .blocks import (
    Attention,
    AttnBlock,
    FeedForwardBlock,
    LayerNorm2d,
    TimestepBlock,
    scaled_dot_product_attention,
    stream,
    timestep_embedding,
)
from .config import Config, Process
from .layers import layer_factory

PREDICTS_X0 = Process(target="x0")


@dataclass(frozen=True, kw_only=True)
class PriorConfig(Config):
    """Sizes of a prior; by default for the encoders of the released Stage C.

    Args:
        clip_img: channels of an image embedding.
        clip_text, clip_text_pooled: channels of the text's tokens and of its pooled embedding.
        width: channels inside.
        heads: of attention.
        depth: layers, each of a feed-forward, a timestep and an attention block.
        timestep_channels: size of a timestep's sinusoidal embedding.
        process: the diffusion process.
    """

    clip_img: int = 768
    clip_text: int = 1280
    clip_text_pooled: int = 1280
    width: int = 1280
    heads: int = 20
    depth: int = 12
    timestep_channels: int = 64
    process: Process = PREDICTS_X0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"a prior of width {self.width} cannot have {self.heads} attention heads")

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        if name == "process":
            return value if isinstance(value, Process) else Process.from_dict(value)
        return super()._read(name, value)


class PriorConditions(NamedTuple):
    """For each attention block, its keys and values [B, n, c] of the text's tokens."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]

    def repeated(self, times: int) -> PriorConditions:
        """Every text's so many times, one after the other."""
        return PriorConditions(
            tuple((k.repeat_interleave(times, dim=0), v.repeat_interleave(times, dim=0)) for k, v in self.keys_values)
        )


class Prior(nn.Module):
    """Predicts an image embedding from a noised one and a text (Ramesh et al. 2022, section 2.2, "diffusion prior").

    The noised embedding is one token. In each layer it reads the text's tokens and the pooled embedding by attention,
    in place of the paper's transformer over all of them: the text encoder has already related these to each other.

    Embeddings are normalized by the mean and the deviation of those that it was trained on, which the file has.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: PriorConfig, *, ops: Any = nn, attention: Attention = scaled_dot_product_attention
    ) -> None:
        super().__init__()
        ops = layer_factory(ops)
        self.config = config
        width = config.width
        self.register_buffer("mean", torch.empty(config.clip_img))
        self.register_buffer("std", torch.empty(config.clip_img))
        self.text_mapper = ops.Linear(config.clip_text, width)
        self.pooled_mapper = ops.Linear(config.clip_text_pooled, width)
        self.token_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.embedding = ops.Linear(config.clip_img, width)
        self.blocks: Any = nn.ModuleList()
        for number in range(config.depth):
            attend = AttnBlock(width, config.heads, width, True, attention, ops)
            attend.number = number
            timestep = TimestepBlock(width, config.timestep_channels, (), ops)
            self.blocks.append(nn.ModuleList([FeedForwardBlock(width, ops), timestep, attend]))
        self.norm = LayerNorm2d(width)
        self.out = ops.Linear(width, config.clip_img)

    def conditions(self, clip_text: Tensor, clip_text_pooled: Tensor) -> PriorConditions:
        """What a run computes once, of clip_text [B, n, c] and clip_text_pooled [B, 1, c']."""
        tokens = torch.cat([self.text_mapper(clip_text), self.pooled_mapper(clip_text_pooled)], dim=1)
        tokens = self.token_norm(tokens)
        return PriorConditions(tuple(attend.keys_values(tokens) for _, _, attend in self.blocks))

    def denoise(self, x: Tensor, r: Tensor, conditions: PriorConditions) -> Tensor:
        """What the process' target is [B, c], for normalized embeddings x [B, c] with the noise that r [B] says."""
        dtype = x.dtype
        h = stream(self.embedding(x)[:, :, None, None])
        time = timestep_embedding(r, self.config.timestep_channels).to(h.dtype)
        for (feed_forward, timestep, attend), keys_values in zip(self.blocks, conditions.keys_values, strict=True):
            h = attend(timestep(feed_forward(h, dtype), time, None), dtype, keys_values)
        return self.out(self.norm(h).flatten(1).to(dtype))

    def normalized(self, embeddings: Tensor) -> Tensor:
        """Image embeddings [B, 1, c] as the network sees them [B, c]."""
        return (embeddings[:, 0] - self.mean.to(embeddings)) / self.std.to(embeddings)

    def embeddings(self, x: Tensor) -> Tensor:
        """The inverse of `normalized`."""
        return (x * self.std.to(x) + self.mean.to(x))[:, None]
