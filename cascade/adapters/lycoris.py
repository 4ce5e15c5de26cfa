"""The tensors of LyCORIS files (LoHa, LoKr, OFT) as changes.

A Tucker core ("t1", "t2", "mid") is multiplied into one of the factors: the same change, without a form of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import BrokenCheckpoint, IncompatibleCheckpoint
from .changes import OFT, Change, Factors, LoHa, LoKr

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def is_lycoris(parts: Mapping[str, Tensor]) -> bool:
    """Whether the parts of a change are those of LoHa, LoKr or OFT."""
    return any(part.startswith(("hada_", "lokr_", "oft_")) for part in parts)


def read(parts: Mapping[str, Tensor], name: str, path: str | None) -> Change:
    """The change of these parts; `name` is the name of one of its tensors, for messages.

    Raises:
        BrokenCheckpoint: parts are missing or do not fit together.
        IncompatibleCheckpoint: BOFT.
    """
    if wrong := [part for part, tensor in parts.items() if not tensor.is_floating_point() or not tensor.numel()]:
        raise BrokenCheckpoint(f"{name}: its {wrong[0]} holds no numbers", path)
    try:
        if "oft_blocks" in parts:
            return _oft(parts, name, path)
        make = _loha if "hada_w1_a" in parts else _lokr
        change = make(dict(parts))
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items())
        raise BrokenCheckpoint(f"{name}: these parts make no change: {shapes}", path) from error
    return change


def _loha(parts: dict[str, Tensor]) -> LoHa:
    alpha, dora = _alpha(parts), parts.pop("dora", None)
    for number in "12":
        core = parts.pop(f"hada_t{number}", None)
        if core is not None:
            a, b = (parts[f"hada_w{number}_{side}"] for side in "ab")
            parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"] = _without_core(core, a, b)
    _only(parts, _LOHA)
    a, b, c, d = (parts[part] for part in _LOHA)
    _matrices(a, b, c, d)
    if not (a.shape == c.shape and b.shape == d.shape and a.shape[1] == b.shape[0]):
        raise ValueError
    return LoHa(a, b, c, d, float(b.shape[0]) if alpha is None else alpha, dora)


def _lokr(parts: dict[str, Tensor]) -> LoKr:
    alpha, dora, core = _alpha(parts), parts.pop("dora", None), parts.pop("lokr_t2", None)
    if core is not None:
        a, b = parts["lokr_w2_a"], parts["lokr_w2_b"]
        parts["lokr_w2_a"], parts["lokr_w2_b"] = _without_core(core, a, b)
    _only(parts, [f"lokr_w{number}{ending}" for number in "12" for ending in ("", "_a", "_b")])
    w1, w2 = (_factors(parts, f"lokr_w{number}") for number in "12")
    change = LoKr(w1, w2, 1.0, dora)
    return replace(change, alpha=float(change.rank or 1) if alpha is None else alpha)


def _factors(parts: Mapping[str, Tensor], part: str) -> Factors:
    if part in parts:
        if f"{part}_a" in parts or f"{part}_b" in parts:
            raise ValueError
        whole = parts[part].flatten(1)
        _matrices(whole)
        return whole
    a, b = parts[f"{part}_a"], parts[f"{part}_b"].flatten(1)
    _matrices(a, b)
    if a.shape[1] != b.shape[0]:
        raise ValueError
    return a, b


def _oft(parts: Mapping[str, Tensor], name: str, path: str | None) -> OFT:
    blocks, limit = parts["oft_blocks"], parts.get("alpha")
    if blocks.dim() == 4:
        raise IncompatibleCheckpoint(f"{name} is BOFT, which is not read here", path)
    _only(parts, ("oft_blocks", "rescale", "alpha"))
    if blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2]:
        raise ValueError
    rows = blocks.shape[0] * blocks.shape[1]
    rescale = parts.get("rescale")
    if rescale is not None and rescale.numel() != rows:
        raise ValueError
    # alpha bounds the norm of blocks - blocks^T; with smaller blocks the change is the same without a bound.
    bound = 0.0 if limit is None else float(limit) * rows
    norm = float((blocks.float() - blocks.float().mT).norm())
    return OFT(blocks * (bound / norm) if 0 < bound < norm else blocks, rescale)


def _alpha(parts: dict[str, Tensor]) -> float | None:
    alpha = parts.pop("alpha", None)
    if alpha is not None and alpha.numel() != 1:
        raise ValueError
    return None if alpha is None else float(alpha)


def _only(parts: Mapping[str, Tensor], known: Sequence[str]) -> None:
    if set(parts) - set(known):
        raise ValueError


def _matrices(*tensors: Tensor) -> None:
    if any(tensor.dim() != 2 for tensor in tensors):
        raise ValueError


def _without_core(core: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """[out, rank] and [rank, in * kh * kw] of a core [rank, rank, kh, kw], a [rank, out] and b [rank, in]."""
    _matrices(a, b)
    return a.mT, torch.einsum("ijkl,jr->irkl", core.float(), b.float()).flatten(1)


def without_core(parts: Mapping[str, Tensor], name: str, path: str | None) -> dict[str, Tensor]:
    """The parts of a convolution's LoRA with its core `mid` [rank, rank, kh, kw] multiplied into `down`.

    Raises BrokenCheckpoint.
    """
    rest = {part: tensor for part, tensor in parts.items() if part != "mid"}
    try:
        down = parts["down"].flatten(1)
        rest["down"] = torch.einsum("ijkl,jr->irkl", parts["mid"].float(), down.float())
    except RuntimeError as error:
        raise BrokenCheckpoint(f"{name}: its lora_mid {list(parts['mid'].shape)} does not fit", path) from error
    return rest


def split(change: LoHa | LoKr | OFT, count: int) -> list[Change]:
    """A change of a fused matrix as those of its `count` equal parts along dimension 0; empty where it has none."""
    if change.outputs % count:
        return []
    if isinstance(change, OFT):
        if change.blocks.shape[0] % count:
            return []
        rescales = [None] * count if change.rescale is None else change.rescale.chunk(count)
        return [OFT(blocks, rescale) for blocks, rescale in zip(change.blocks.chunk(count), rescales, strict=True)]
    if change.dora is not None and change.dora.shape[0] != change.outputs:
        return []
    doras = [None] * count if change.dora is None else change.dora.chunk(count)
    if isinstance(change, LoHa):
        rows = zip(change.w1_a.chunk(count), change.w2_a.chunk(count), doras, strict=True)
        return [replace(change, w1_a=first, w2_a=second, dora=dora) for first, second, dora in rows]
    first = change.w1[0] if isinstance(change.w1, tuple) else change.w1
    if first.shape[0] % count:
        return []
    parts = first.chunk(count)
    firsts: list[Factors] = [(part, change.w1[1]) for part in parts] if isinstance(change.w1, tuple) else list(parts)
    return [replace(change, w1=each, dora=dora) for each, dora in zip(firsts, doras, strict=True)]


def written(change: LoHa | LoKr | OFT) -> dict[str, Tensor]:
    """The parts of a change as LyCORIS names them, without DoRA's lengths. Every reader agrees on what they mean."""
    if isinstance(change, OFT):
        rest = {} if change.rescale is None else {"rescale": change.rescale}
        return {"oft_blocks": change.blocks, "alpha": torch.tensor(0.0), **rest}
    if isinstance(change, LoHa):
        return dict(zip(_LOHA, (change.w1_a, change.w1_b, change.w2_a, change.w2_b), strict=True)) | _scaled(change)
    parts: dict[str, Tensor] = {}
    for number, factors in (("1", change.w1), ("2", change.w2)):
        if isinstance(factors, tuple):
            parts |= {f"lokr_w{number}_a": factors[0], f"lokr_w{number}_b": factors[1]}
        else:
            parts[f"lokr_w{number}"] = factors
    return parts | _scaled(change)


def _scaled(change: LoHa | LoKr) -> dict[str, Tensor]:
    return {"alpha": torch.tensor(change.alpha)}
