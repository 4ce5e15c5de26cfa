"""The blocks of the networks.

Tensors are [B, c, h, w] in the channels-last memory format, so that changes between convolutions (channels first)
and linear layers (channels last) are views, without a copy.

float16: in the released Stage C the values between the blocks (the residual stream) exceed float16's range, because the
timestep's modulation multiplies them repeatedly. So in a float16 network the stream itself, the layers that read it
without a norm, and the modulations are float32; everything else is float16. In float32 and bfloat16 this changes
nothing: the argument `dtype` of the blocks is then the stream's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q, k, v, heads) -> [B, n, c], each [B, tokens, c]."""


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of q [B, n, c] over k, v [B, m, c] -> [B, n, c] (Vaswani et al. 2017, eq. 1)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


class AttentionCall(NamedTuple):
    """What an attention block is about to compute, for who acts around it.

    q: [B, h w, c], of the image's tokens, row by row.
    k, v: [B, n, c], of the image's tokens (if the block has self-attention) and then those of the conditions.
    attend: what the block itself would do.
    block: its number among the attention blocks of the stack, in the order in which they run.
    size: h, w.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    attend: Attention
    block: int
    size: tuple[int, int]

    def plain(self) -> Tensor:
        """What the block itself would make of it [B, h w, c]."""
        return self.attend(self.q, self.k, self.v, self.heads)


AroundAttention = Callable[[AttentionCall], Tensor]
"""What attention blocks do instead of their own attention: the result is [B, h w, c]."""


def stream(x: Tensor) -> Tensor:
    """The residual stream's form: channels last, and float32 if it is float16."""
    x = x.float() if x.dtype == torch.float16 else x
    return x.contiguous(memory_format=torch.channels_last)


def on_stream(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` for an x that may be the float32 stream of a float16 network."""
    if layer.weight is not None and layer.weight.dtype == torch.float16:
        return functional_call(layer, {name: value.float() for name, value in layer.named_parameters()}, (x,))
    return layer(x)


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear with aligned corners, computed in float32; x itself if it has this size already."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x.float(), size=tuple(size), mode="bilinear", align_corners=True).to(x.dtype)


def timestep_embedding(r: Tensor, channels: int, max_positions: int = 10000) -> Tensor:
    """Sinusoidal embedding [B, channels], float32, of noise conditions r [B] in [0, 1] (Vaswani et al. 2017, 3.5)."""
    half = channels // 2
    frequency = torch.exp(torch.arange(half, device=r.device).float() * (-math.log(max_positions) / (half - 1)))
    angle = (r.float() * max_positions)[:, None] * frequency
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, channels % 2))


def channels_last(x: Tensor) -> Tensor:
    """[B, c, h, w] -> [B, h, w, c], a view."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """[B, h, w, c] -> [B, c, h, w], a view."""
    return x.permute(0, 3, 1, 2)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of [B, c, h, w], without weights of its own."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(F.layer_norm(channels_last(x), (self.channels,), eps=self.eps))


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that moves its statistics to its input's device: a host's layer factory has no batch norm."""

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, eps=eps, affine=affine)

    def reset_parameters(self) -> None:
        """Nothing: `initialize` fills weights, constructors do not."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return super().forward(input)
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (None if tensor is None else tensor.to(input) for tensor in tensors)
        return F.batch_norm(input, mean, var, weight, bias, eps=self.eps)


def spatial_norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each channel of [B, h, w, c] in float32, [B, 1, 1, c].

    The sum of squares exceeds float16's range much earlier than its root.
    """
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    # On a CPU vector_norm reads the image channel by channel and takes two to five times as long. The constant is too
    # small to change a result, and keeps the gradient of the root finite for a channel of zeros.
    return x.float().square().sum(dim=(1, 2), keepdim=True).add_(1e-30).sqrt()


class GlobalResponseNorm(nn.Module):
    """Global response normalization of [B, h, w, c] (Woo et al. 2023, ConvNeXt V2, algorithm 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.empty(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        energy = spatial_norm(x)
        response = (energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)).to(x.dtype)
        return torch.addcmul(self.beta.to(x), x, torch.addcmul(torch.ones_like(response), self.gamma.to(x), response))


def channelwise(width_in: int, width: int, ops: Any) -> nn.Sequential:
    """The MLP of residual and feed-forward blocks. Index 3 is dropout, which a training can enable."""
    return nn.Sequential(
        ops.Linear(width_in, width * 4),
        nn.GELU(),
        GlobalResponseNorm(width * 4),
        nn.Dropout(0.0),
        ops.Linear(width * 4, width),
    )


class ResBlock(nn.Module):
    """Depthwise convolution, norm, channelwise MLP; `skip` [B, c_skip, h, w] is concatenated between them."""

    def __init__(self, width: int, skip_width: int, kernel_size: int, ops: Any) -> None:
        super().__init__()
        self.depthwise = ops.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = LayerNorm2d(width)
        self.channelwise = channelwise(width + skip_width, width, ops)

    def forward(self, x: Tensor, dtype: torch.dtype, skip: Tensor | None = None) -> Tensor:
        h = self.norm(on_stream(self.depthwise, x)).to(dtype)
        if skip is not None:
            h = torch.cat([h, skip.to(dtype)], dim=1)
        return x + channels_first(self.channelwise(channels_last(h)))


class FeedForwardBlock(nn.Module):
    """Norm and channelwise MLP."""

    def __init__(self, width: int, ops: Any) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.channelwise = channelwise(width, width, ops)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x + channels_first(self.channelwise(channels_last(self.norm(x).to(dtype))))


class TimestepBlock(nn.Module):
    """x (1 + a) + b, with a and b linear in the embeddings of the timestep and of its extra conditions."""

    number: int
    """Index among the timestep blocks of the stack, which sets it."""

    def __init__(self, width: int, timestep_channels: int, conditions: tuple[str, ...], ops: Any) -> None:
        super().__init__()
        self.mapper = ops.Linear(timestep_channels, width * 2)
        self.conditions = conditions
        for name in conditions:
            setattr(self, f"mapper_{name}", ops.Linear(timestep_channels, width * 2))

    def steady(self, embeddings: dict[str, Tensor]) -> Tensor:
        """The part [B, 2c] of the modulation from the extra conditions: the same at every step of a run."""
        parts = [on_stream(getattr(self, f"mapper_{name}"), embeddings[name]) for name in self.conditions]
        return torch.stack(parts).sum(0)

    def forward(self, x: Tensor, embedding: Tensor, steady: Tensor | None) -> Tensor:
        modulation = on_stream(self.mapper, embedding)
        a, b = (modulation if steady is None else modulation + steady)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(b, x, 1 + a)


class Projections(nn.Module):
    """The four matrices of multi-head attention; in the released files the first three are one matrix."""

    def __init__(self, width: int, ops: Any) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (ops.Linear(width, width) for _ in range(3))
        self.out_proj = ops.Linear(width, width)


class Attention2d(nn.Module):
    """Contains the projections under their name in the released files."""

    def __init__(self, width: int, ops: Any) -> None:
        super().__init__()
        self.attn = Projections(width, ops)


class AttnBlock(nn.Module):
    """Attention of the image over the conditions' tokens and, usually, over itself, in one softmax."""

    number: int
    """Index among the attention blocks of the stack, which sets it."""

    def __init__(
        self, width: int, heads: int, condition_channels: int, self_attention: bool, attention: Attention, ops: Any
    ) -> None:
        super().__init__()
        self.heads, self.self_attention, self.attend = heads, self_attention, attention
        self.norm = LayerNorm2d(width)
        self.attention = Attention2d(width, ops)
        self.kv_mapper = nn.Sequential(nn.SiLU(), ops.Linear(condition_channels, width))

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, n, c] of the conditions' tokens [B, n, condition_channels]."""
        tokens = self.kv_mapper(tokens)
        return self.attention.attn.to_k(tokens), self.attention.attn.to_v(tokens)

    def forward(
        self,
        x: Tensor,
        dtype: torch.dtype,
        keys_values: tuple[Tensor, Tensor],
        around: AroundAttention | None = None,
    ) -> Tensor:
        attn, (k, v) = self.attention.attn, keys_values
        h = channels_last(self.norm(x).to(dtype)).flatten(1, 2)
        if self.self_attention:
            k, v = torch.cat([attn.to_k(h), k], dim=1), torch.cat([attn.to_v(h), v], dim=1)
        q = attn.to_q(h)
        if around is None:
            h = self.attend(q, k, v, self.heads)
        else:
            h = around(AttentionCall(q, k, v, self.heads, self.attend, self.number, (x.shape[-2], x.shape[-1])))
        h = attn.out_proj(h)
        return x + channels_first(h.unflatten(1, x.shape[-2:]))
