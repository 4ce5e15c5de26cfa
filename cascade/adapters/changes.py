"""The kinds of changes of a weight. In every file format one belongs to one parameter of one network.

A change by factors is scaled by alpha / rank (Hu et al. 2021, LoRA, section 4.1); DoRA is Liu et al. 2024, eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """weight + up @ down * alpha / rank; with DoRA each row or column of the sum is then scaled to a learned length.

    down: [rank, in], for a convolution [rank, in, kh, kw].
    up: [out, rank], for a convolution [out, rank, 1, 1].
    dora: the lengths, [out, 1, ...] or [1, in, ...], with as many dimensions as the weight.
    """

    down: Tensor
    up: Tensor
    alpha: float
    dora: Tensor | None = None

    @property
    def title(self) -> str:
        return "LoRA" if self.dora is None else "DoRA"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def outputs(self) -> int:
        return self.up.shape[0]

    def fits(self, shape: torch.Size) -> bool:
        """Whether it can change a weight of this shape.

        OneTrainer treats a depthwise convolution [c, 1, kh, kw] as one row of c * kh * kw numbers: up [1, rank, 1, 1],
        down [rank, c, kh, kw].
        """
        depthwise = len(shape) == 4 and shape[1] == 1
        rows = self.up.shape[0] == shape[0] and self.down[0].numel() == math.prod(shape[1:])
        one_row = depthwise and self.up.shape[0] == 1 and tuple(self.down.shape[1:]) == (shape[0], *shape[2:])
        return len(shape) > 1 and (rows or one_row) and (self.dora is None or _scales(self.dora.shape, shape))

    def delta(self, weight: Tensor) -> Tensor:
        """What is added to the weight: float32, in the weight's shape and on its device."""
        up, down = (factor.to(weight.device, torch.float32).flatten(1) for factor in (self.up, self.down))
        return _with_lengths(weight, (up @ down).reshape(weight.shape) * self.scale, self.dora)


def lengths(weight: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """The 2-norms of a weight over `axes`, which stay as axes of size 1; by default of its rows, [out, 1, ...].

    Never 0, since DoRA divides by them.
    """
    axes = range(1, weight.dim()) if axes is None else axes
    return torch.linalg.vector_norm(weight, dim=tuple(axes), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _with_lengths(weight: Tensor, delta: Tensor, dora: Tensor | None) -> Tensor:
    """What is added to a weight for a change `delta` and DoRA's lengths, float32."""
    if dora is None:
        return delta
    dora, base = dora.to(weight.device, torch.float32), weight.float()
    changed = base + delta
    axes = [axis for axis in range(changed.dim()) if dora.shape[axis] == 1] or list(range(1, changed.dim()))
    return changed * (dora / lengths(changed, axes)) - base


def _scales(dora: torch.Size, shape: torch.Size) -> bool:
    ones = (1,) * (len(shape) - 2)
    return tuple(dora) in ((shape[0], 1, *ones), (1, shape[1], *ones))


@dataclass(frozen=True)
class Full:
    """weight + value, of any shape."""

    value: Tensor
    title = "full change"

    @property
    def outputs(self) -> int:
        return self.value.shape[0]

    def fits(self, shape: torch.Size) -> bool:
        return self.value.shape == shape

    def delta(self, weight: Tensor) -> Tensor:
        return self.value.to(weight.device, torch.float32)


@dataclass(frozen=True)
class Rows:
    """values [n, width] added to the rows `indices` [n] of a table."""

    indices: Tensor
    values: Tensor
    title = "rows"

    @property
    def outputs(self) -> int:
        return int(self.indices.max()) + 1

    def fits(self, shape: torch.Size) -> bool:
        return len(shape) == 2 and self.outputs <= shape[0] and self.values.shape[1] == shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        delta = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        return delta.index_add_(0, self.indices.to(weight.device), self.values.to(weight.device, torch.float32))


@dataclass(frozen=True)
class LoHa:
    """weight + (w1_a @ w1_b) * (w2_a @ w2_b) * alpha / rank, by element (Hyeon-Woo et al. 2021, FedPara, eq. 2).

    w1_a, w2_a: [out, rank]. w1_b, w2_b: [rank, in], of a convolution [rank, in * kh * kw]. dora: as of `LowRank`.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    dora: Tensor | None = None
    title = "LoHa"

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def outputs(self) -> int:
        return self.w1_a.shape[0]

    def fits(self, shape: torch.Size) -> bool:
        right = len(shape) > 1 and (self.outputs, self.w1_b.shape[1]) == (shape[0], math.prod(shape[1:]))
        return right and (self.dora is None or _scales(self.dora.shape, shape))

    def plain(self) -> Tensor:
        """The change without lengths, [out, in * ...], in the factors' type."""
        return (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b) * (self.alpha / self.rank)

    def delta(self, weight: Tensor) -> Tensor:
        """As of `LowRank`."""
        first, second = (
            a.to(weight.device, torch.float32) @ b.to(weight.device, torch.float32)
            for a, b in ((self.w1_a, self.w1_b), (self.w2_a, self.w2_b))
        )
        return _with_lengths(weight, (first * second).reshape(weight.shape) * (self.alpha / self.rank), self.dora)


Factors = Tensor | tuple[Tensor, Tensor]
"""A matrix, or two whose product it is."""


@dataclass(frozen=True)
class LoKr:
    """weight + kron(w1, w2) * alpha / rank (Yeh et al. 2023, LyCORIS, section 3.2), without the scale where neither is
    a product.

    w1: [l, m]. w2: [out / l, in / m], of a convolution [out / l, in / m * kh * kw]. dora: as of `LowRank`.
    """

    w1: Factors
    w2: Factors
    alpha: float
    dora: Tensor | None = None
    title = "LoKr"

    @property
    def rank(self) -> int:
        """0 where neither matrix is a product."""
        return next((pair[1].shape[0] for pair in (self.w2, self.w1) if isinstance(pair, tuple)), 0)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def outputs(self) -> int:
        return _size(self.w1)[0] * _size(self.w2)[0]

    def fits(self, shape: torch.Size) -> bool:
        if len(shape) < 2 or self.outputs != shape[0] or shape[1] % _size(self.w1)[1]:
            return False
        right = _size(self.w1)[1] * _size(self.w2)[1] == math.prod(shape[1:])
        return right and (self.dora is None or _scales(self.dora.shape, shape))

    def delta(self, weight: Tensor) -> Tensor:
        """As of `LowRank`."""
        w1, w2 = (product(factors, weight.device) for factors in (self.w1, self.w2))
        return _with_lengths(weight, torch.kron(w1, w2).reshape(weight.shape) * self.scale, self.dora)


def _size(factors: Factors) -> tuple[int, int]:
    first, last = factors if isinstance(factors, tuple) else (factors, factors)
    return first.shape[0], last.shape[1]


def product(factors: Factors, device: torch.device | None = None) -> Tensor:
    """The matrix, float32."""
    if isinstance(factors, tuple):
        return factors[0].to(device, torch.float32) @ factors[1].to(device, torch.float32)
    return factors.to(device, torch.float32)


@dataclass(frozen=True)
class OFT:
    """Each block of the weight's rows is rotated: (R^T W), R = (I + Q) (I - Q)^-1, Q = blocks - blocks^T (Qiu et al.
    2023, section 3.2, as LyCORIS writes it).

    blocks: [n, size, size] with n * size rows. rescale: factors of the rows, [out, 1, ...], or None.
    """

    blocks: Tensor
    rescale: Tensor | None = None
    title = "OFT"

    @property
    def outputs(self) -> int:
        return self.blocks.shape[0] * self.blocks.shape[1]

    def fits(self, shape: torch.Size) -> bool:
        right = len(shape) > 1 and self.outputs == shape[0]
        return right and (self.rescale is None or self.rescale.numel() == shape[0])

    def rotations(self, device: torch.device) -> Tensor:
        """R, [n, size, size], float32."""
        blocks = self.blocks.to(device, torch.float32)
        q = blocks - blocks.mT
        eye = torch.eye(q.shape[1], device=device)
        return (eye + q) @ torch.linalg.inv(eye - q)

    def delta(self, weight: Tensor) -> Tensor:
        """As of `LowRank`."""
        base = weight.float()
        rows = base.reshape(*self.blocks.shape[:2], -1)
        rotated = (self.rotations(weight.device).mT @ rows).reshape(base.shape)
        if self.rescale is not None:
            rotated = rotated * self.rescale.to(weight.device, torch.float32).reshape(-1, *[1] * (base.dim() - 1))
        return rotated - base


Change = LowRank | Full | Rows | LoHa | LoKr | OFT
