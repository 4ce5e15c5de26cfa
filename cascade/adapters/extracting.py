"""A LoRA from the difference of two networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..checkpoints import config_of, kind_of
from ..errors import IncompatibleCheckpoint
from .changes import Change, Full, LowRank
from .lora import Lora
from .names import FORMATS, name_of

ITERATIONS, EXTRA = 4, 16
"""Power iterations and extra directions of the randomized decomposition (Halko et al. 2011, algorithm 4.4)."""


def extract(
    base: nn.Module,
    tuned: nn.Module,
    rank: int,
    *,
    only: Sequence[str] = ("",),
    device: torch.device | str = "cpu",
    on_weight: Callable[[int, int], None] | None = None,
) -> Lora:
    """The difference `tuned - base` as a LoRA.

    Matrices and convolutions are approximated by their largest singular values, vectors (biases) are kept exactly.
    Parameters that are equal in both are left out.

    Args:
        rank: of the matrices, at most; a matrix of fewer singular values keeps them all.
        only: take parameters whose names contain one of these texts.
        device: where the decompositions are computed.
        on_weight: called with (parameters done, all parameters).

    Raises:
        ValueError: rank below 1.
        IncompatibleCheckpoint: the networks differ in kind or size, are equal, or contain NaN or infinity.
    """
    if rank < 1:
        raise ValueError(f"a LoRA's rank must be at least 1, not {rank}")
    kind = kind_of(base)
    if kind != kind_of(tuned) or config_of(base) != config_of(tuned):
        raise IncompatibleCheckpoint("a LoRA can only be extracted from two networks of the same kind and size")
    old = dict(base.named_parameters())
    names = [name for name in old if any(text in name for text in only)]
    new = dict(tuned.named_parameters())
    changes: dict[str, Change] = {}
    for done, name in enumerate(names):
        before, after = old[name].data, new[name].data
        if before.dtype != after.dtype or not torch.equal(before, after.to(before.device)):
            delta = after.to(device, torch.float32) - before.to(device, torch.float32)
            if not torch.isfinite(delta).all():
                raise IncompatibleCheckpoint(f"NaN or infinity in the difference of {name}")
            changes[name] = _change(kind, name, delta, rank)
        if on_weight is not None:
            on_weight(done + 1, len(names))
    if not changes:
        raise IncompatibleCheckpoint("the two networks are equal: there is nothing to extract")
    return Lora({kind: changes})


def _change(kind: str, name: str, delta: Tensor, rank: int) -> Change:
    module, _, parameter = name.rpartition(".")
    if delta.dim() < 2 or parameter != "weight" or name_of(kind, module, FORMATS["cascade"]) is None:
        return Full(delta.cpu())
    down, up = decompose(delta.flatten(1), rank)
    rank, kernel = down.shape[0], delta.shape[1:]
    up = up.reshape(*up.shape, *[1] * (delta.dim() - 2))
    return LowRank(down.reshape(rank, *kernel).cpu(), up.cpu(), float(rank))


def decompose(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """down [rank, in] and up [out, rank] whose product up @ down is nearest to the matrix (Eckart and Young 1936)."""
    smallest = min(matrix.shape)
    rank = min(rank, smallest)
    if rank + EXTRA < smallest // 4:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=rank + EXTRA, niter=ITERATIONS)
    else:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        v = vh.mT
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).mT.contiguous(), (u[:, :rank] * root).contiguous()
