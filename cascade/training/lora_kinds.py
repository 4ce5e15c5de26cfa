"""LoHa, LoKr and OFT while they are trained: the change of a layer's weight is computed anew in every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import OFT, LoHa, LoKr
from ..adapters.changes import Factors

Kind = Literal["lora", "loha", "lokr", "oft"]
"""lora: see `lora_layers.Change`."""


class WeightChange(nn.Module):
    """The trained change of one layer; at first it changes nothing. The same layout as in `adapters.changes`.

    rank: of LoHa and of LoKr's second matrix, at most; of OFT the size of its blocks, at most.
    factor: of LoKr, the most rows and columns of its first matrix; None for about as many as the second has.
    """

    def __init__(
        self, layer: Any, kind: Kind, rank: int, alpha: float, dropout: float, factor: int | None, generator: Any
    ) -> None:
        super().__init__()
        weight: Tensor = layer.weight
        self.dropout = dropout
        parts = _PARTS[kind](tuple(weight.shape), rank, factor, generator)
        self.parts = nn.ParameterDict({name: part.to(weight.device) for name, part in parts.items()})
        self.alpha, self.kind = alpha, kind

    def change(self) -> LoHa | LoKr | OFT:
        """With the parameters themselves: gradients go through it."""
        parts = self.parts
        if self.kind == "oft":
            return OFT(parts["blocks"])
        if self.kind == "loha":
            return LoHa(parts["w1_a"], parts["w1_b"], parts["w2_a"], parts["w2_b"], self.alpha)
        second: Factors = parts["w2"] if "w2" in parts else (parts["w2_a"], parts["w2_b"])
        return LoKr(parts["w1"], second, self.alpha)

    def to_change(self) -> LoHa | LoKr | OFT:
        """A copy for a file."""
        found = self.change()
        return replace(found, **{name: _copied(getattr(found, name)) for name in _TENSORS[type(found)]})

    def take(self, change: Any) -> bool:
        """Go on from another change; False where it is of another kind or size."""
        own = self.change()
        if type(change) is not type(own) or getattr(change, "dora", None) is not None:
            return False
        pairs: list[tuple[Tensor, Tensor]] = []
        for name in _TENSORS[type(own)]:
            here, there = (
                each if isinstance(each, tuple) else (each,) for each in (getattr(own, name), getattr(change, name))
            )
            if [t.shape for t in here] != [t.shape for t in there]:
                return False
            pairs += zip(here, there, strict=True)
        with torch.no_grad():
            for here, there in pairs:
                here.copy_(there)
        if not isinstance(change, OFT):
            self.alpha = change.alpha
        return True

    def forward(self, layer: Any, x: Tensor, output: Tensor) -> Tensor:
        """The layer's output [..] for its input x, with the change."""
        delta = self.change().delta(layer.weight).to(x.dtype)
        x = F.dropout(x, self.dropout, self.training)
        if isinstance(layer, nn.Linear):
            return output + F.linear(x, delta)
        return output + F.conv2d(x, delta, None, layer.stride, layer.padding, layer.dilation, layer.groups)


_TENSORS: Mapping[type, tuple[str, ...]] = {
    LoHa: ("w1_a", "w1_b", "w2_a", "w2_b"),
    LoKr: ("w1", "w2"),
    OFT: ("blocks",),
}


def _copied(factors: Factors) -> Factors:
    if isinstance(factors, tuple):
        return factors[0].detach().clone(), factors[1].detach().clone()
    return factors.detach().clone()


def _loha(shape: tuple[int, ...], rank: int, factor: int | None, generator: Any) -> dict[str, Tensor]:
    """Factors as LyCORIS begins with them: the last is 0."""
    out, inner = shape[0], math.prod(shape[1:])

    def normal(rows: int, columns: int, std: float) -> Tensor:
        return torch.empty(rows, columns).normal_(0, std, generator=generator)

    first = {"w1_a": normal(out, rank, 0.1), "w1_b": normal(rank, inner, 1.0)}
    return first | {"w2_a": torch.zeros(out, rank), "w2_b": normal(rank, inner, 1.0)}


def _lokr(shape: tuple[int, ...], rank: int, factor: int | None, generator: Any) -> dict[str, Tensor]:
    rows, columns = (divisor(size, factor or math.isqrt(size)) for size in shape[:2])
    out, inner = shape[0] // rows, shape[1] // columns * math.prod(shape[2:])

    def uniform(rows: int, columns: int) -> Tensor:
        bound = 1 / math.sqrt(columns)
        return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

    first = {"w1": uniform(rows, columns)}
    if 2 * rank >= max(out, inner):
        return first | {"w2": torch.zeros(out, inner)}
    return first | {"w2_a": uniform(out, rank), "w2_b": torch.zeros(rank, inner)}


def _oft(shape: tuple[int, ...], rank: int, factor: int | None, generator: Any) -> dict[str, Tensor]:
    size = divisor(shape[0], rank)
    return {"blocks": torch.zeros(shape[0] // size, size, size)}


_PARTS: Mapping[str, Callable[..., dict[str, Tensor]]] = {"loha": _loha, "lokr": _lokr, "oft": _oft}


def divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`."""
    return next(each for each in range(min(number, most), 0, -1) if number % each == 0)
