"""Images of one style: all of a batch share attention with its first (Hertz et al. 2024, StyleAligned)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion import InInterval
from ..errors import InvalidSettings
from ..models import AroundAttention, AttentionCall
from .attention import AttentionController, NetworkCall


@dataclass(frozen=True, kw_only=True)
class StyleAligned(InInterval, AttentionController):
    """Controls a run whose first image is the one that the others follow; the first is as without control.

    In every attention block the others also look at the first image's own tokens, and their queries and keys get the
    mean and deviation of the first's (section 4, eq. 2 and 3).

    weight: how much of this is mixed into what the block would compute without it, 0 to 1.

    Raises InvalidSettings for a weight outside 0 to 1.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight <= 1:
            raise InvalidSettings(f"the weight of a shared style must be from 0 to 1, got {self.weight}")

    def around(self, call: NetworkCall) -> AroundAttention | None:
        if self.weight == 0 or call.percent not in self.interval:
            return None
        return lambda block: self._attend(call, block)

    def _attend(self, call: NetworkCall, block: AttentionCall) -> Tensor:
        own, parts = block.k.shape[1] - call.tokens.count, len(call.with_prompt)
        q, k, v = (x.unflatten(0, (parts, -1)) for x in (block.q, block.k, block.v))
        first, first_v = k[:, :1, :own].expand_as(k[:, :, :own]), v[:, :1, :own].expand_as(v[:, :, :own])
        keys = torch.cat([first, _as_first(k[:, :, :own]), k[:, :, own:]], dim=2).flatten(0, 1)
        values = torch.cat([first_v, v], dim=2).flatten(0, 1)
        aligned = block.attend(_as_first(q).flatten(0, 1), keys, values, block.heads)
        plain = block.plain()
        mixed = torch.lerp(plain, aligned, self.weight) if self.weight != 1 else aligned
        mixed, plain = (x.unflatten(0, (parts, -1)) for x in (mixed, plain))
        return torch.cat([plain[:, :1], mixed[:, 1:]], dim=1).flatten(0, 1)


def _as_first(x: Tensor) -> Tensor:
    """x [parts, images, n, c] with the mean and deviation over n that the first image has (Huang and Belongie 2017)."""
    mean, deviation = x.mean(2, keepdim=True), x.std(2, keepdim=True) + 1e-5
    return (x - mean) / deviation * deviation[:, :1] + mean[:, :1]
