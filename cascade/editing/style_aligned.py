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
        keys = torch.cat([k[:, :1, :own].expand_as(k[:, :, :own]), _as_first(k[:, :, :own]), k[:, :, own:]], dim=2)
        values = torch.cat([v[:, :1, :own].expand_as(v[:, :, :own]), v], dim=2)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            found = block.attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), block.heads)
            return found.unflatten(0, (parts, -1))

        others = attend(_as_first(q)[:, 1:], keys[:, 1:], values[:, 1:])
        if self.weight != 1:
            others = torch.lerp(attend(q[:, 1:], k[:, 1:], v[:, 1:]), others, self.weight)
        return torch.cat([attend(q[:, :1], k[:, :1], v[:, :1]), others], dim=1).flatten(0, 1)


def _as_first(x: Tensor) -> Tensor:
    """x [parts, images, n, c] with the mean and deviation over n that the first image has (Huang and Belongie 2017)."""
    mean, deviation = x.mean(2, keepdim=True), x.std(2, keepdim=True) + 1e-5
    return (x - mean) / deviation * deviation[:, :1] + mean[:, :1]
