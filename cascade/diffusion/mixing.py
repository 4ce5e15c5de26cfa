"""Between latents, or between embeddings: mixes of tensors [B, ...], image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BlendMode = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(first, second, blend_factor [B]) -> what lies between them."""


def weighted(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum, weights as they are: they need not add up to 1, and may be negative."""
    return torch.stack([weight * x for weight, x in zip(weights, tensors, strict=True)]).sum(dim=0)


def blend(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum, as long as the parts are: for embeddings, of which the direction says what is there.

    Its length is the mean of theirs, by the weights' sizes. Zeros where all weights are 0.
    """
    total = sum(map(abs, weights)) or 1.0
    wanted = weighted([_length(x) for x in tensors], [abs(weight) / total for weight in weights])
    mixed = weighted([x.float() for x in tensors], weights)
    return (mixed * wanted / _length(mixed).clamp_min(1e-12)).to(tensors[0].dtype)


def lerp(first: Tensor, second: Tensor, blend_factor: Tensor | float) -> Tensor:
    """The straight way from `first` (blend_factor 0) to `second` (blend_factor 1). blend_factor: a number, or [B]."""
    return torch.lerp(first.float(), second.float(), _broadcast(blend_factor, first)).to(first.dtype)


def slerp(first: Tensor, second: Tensor, blend_factor: Tensor | float) -> Tensor:
    """The way along the sphere from `first` to `second` (Shoemake 1985), its radius going evenly from one to the other.

    Each image is one vector. A straight line leads through latents of small length, which give pale, blurred images.
    blend_factor: a number, or [B]. Opposite and zero vectors have no such path: they are mixed along the line.
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
    # A float32 cosine does not tell smaller angles from none.
    curve = (sine > 2e-3) & (radii[0] > 0) & (radii[1] > 0)
    return torch.where(curve, curved, torch.lerp(first.float(), second.float(), blend_factor)).to(first.dtype)


def sequence(tensors: Tensor, count: int, blend_mode: BlendMode = slerp) -> Tensor:
    """`count` tensors [count, ...] on the way from the first of tensors [n, ...] past all to the last, n 2 or more."""
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
