"""Blends of latents or embeddings: tensors [B, ...], each image by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BlendMode = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(first, second, blend_factor [B]) -> the blend."""


def weighted(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum. Weights may be negative, and need not add up to 1."""
    return torch.stack([weight * x for weight, x in zip(weights, tensors, strict=True)]).sum(dim=0)


def blend(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum with the mean length of the parts: for embeddings, whose direction is the content.

    The mean is weighted by the absolute weights. Zeros if all weights are 0.
    """
    total = sum(map(abs, weights)) or 1.0
    length = weighted([_length(x) for x in tensors], [abs(weight) / total for weight in weights])
    mixed = weighted([x.float() for x in tensors], weights)
    return (mixed * length / _length(mixed).clamp_min(1e-12)).to(tensors[0].dtype)


def lerp(first: Tensor, second: Tensor, blend_factor: Tensor | float) -> Tensor:
    """Linear interpolation from `first` (blend_factor 0) to `second` (1). blend_factor: a number, or [B]."""
    return torch.lerp(first.float(), second.float(), _broadcast(blend_factor, first)).to(first.dtype)


def slerp(first: Tensor, second: Tensor, blend_factor: Tensor | float) -> Tensor:
    """Spherical interpolation from `first` to `second` (Shoemake 1985), with linearly interpolated length.

    Each image is one vector. Linear interpolation gives shorter vectors, which a network decodes to pale, blurred
    images.
    blend_factor: a number, or [B]. Opposite and zero vectors are interpolated linearly.
    """
    blend_factor = _broadcast(blend_factor, first)
    radii = [_length(x) for x in (first, second)]
    directions = [x.float() / radius.clamp_min(1e-12) for x, radius in zip((first, second), radii, strict=True)]
    angle = (directions[0] * directions[1]).sum(_sides(first), keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    on_sphere = (
        ((1 - blend_factor) * angle).sin() * directions[0] + (blend_factor * angle).sin() * directions[1]
    ) / sine.clamp_min(1e-12)
    curved = on_sphere * torch.lerp(radii[0], radii[1], blend_factor)
    # In float32 the cosine of a smaller angle cannot be distinguished from 1.
    curve = (sine > 2e-3) & (radii[0] > 0) & (radii[1] > 0)
    return torch.where(curve, curved, torch.lerp(first.float(), second.float(), blend_factor)).to(first.dtype)


def sequence(tensors: Tensor, count: int, blend_mode: BlendMode = slerp) -> Tensor:
    """`count` evenly spaced blends [count, ...] from the first of tensors [n, ...] through all to the last, n >= 2."""
    places = torch.linspace(0, len(tensors) - 1, count)
    before = places.long().clamp(max=len(tensors) - 2)
    return blend_mode(tensors[before], tensors[before + 1], places - before)


def _sides(x: Tensor) -> tuple[int, ...]:
    """All dimensions but the first."""
    return tuple(range(1, x.ndim))


def _length(x: Tensor) -> Tensor:
    """[B, 1, ...]: the length of each image as one vector."""
    return x.float().square().sum(_sides(x), keepdim=True).sqrt()


def _broadcast(blend_factor: Tensor | float, like: Tensor) -> Tensor:
    blend_factor = torch.as_tensor(blend_factor, dtype=torch.float32, device=like.device)
    return blend_factor.reshape(-1, *[1] * (like.ndim - 1)).expand(len(like), *[1] * (like.ndim - 1))
