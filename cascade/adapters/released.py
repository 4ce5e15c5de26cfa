"""The released trainer's file: attention's matrices by their order, not by name, and changes of the token table.

`weights.I.lora_down` is [rank, in], `weights.I.lora_up` [out, rank]. For each attention block in the network's order,
even I is `out_proj` and odd I the fused `in_proj`. The scale is 1 / rank. `embeddings.embeddings` [n, width] is added
to the rows `embeddings.indices` [n] of the token table; rows past the vocabulary are new tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from ..checkpoints.network_kinds import empty_network, variant
from ..errors import BrokenCheckpoint, IncompatibleCheckpoint
from ..models import StageCConfig
from .changes import Change, LowRank, Rows
from .lora import MAX_TOKENS, RELEASED_STAGE_C, TABLE, Lora, Token

VOCABULARY = 49408
"""Size of CLIP's vocabulary; the ids of new tokens follow."""
NOT_RELEASED = "a size that was not released: its Stage C is needed too (model, --base or config)"
ALPHA = 1.0
WEIGHT = re.compile(r"weights\.(\d{1,6})\.lora_(down|up)")
EMBEDDINGS, INDICES = "embeddings.embeddings", "embeddings.indices"

Shape = tuple[int, ...]


def is_released(names: Iterable[str]) -> bool:
    return any(name == EMBEDDINGS or WEIGHT.fullmatch(name) for name in names)


def read(
    tensors: Mapping[str, Tensor], config: StageCConfig | None, path: str | None
) -> tuple[dict[str, dict[str, Change]], list[Token]]:
    """Changes by kind and parameter, and tokens without texts.

    Raises:
        BrokenCheckpoint, IncompatibleCheckpoint: as `read_lora`.
    """
    pairs, others = _pairs(tensors, path)
    if others:
        raise IncompatibleCheckpoint(f"a file of the released trainer does not contain {', '.join(others[:3])}", path)
    rows, tokens = _embeddings(tensors, path)
    changes: dict[str, dict[str, Change]] = {}
    if pairs:
        changes["stage_c"] = _by_order(pairs, _settled(pairs, config, path))
    if rows is not None:
        changes["text_encoder"] = {TABLE: rows}
    return changes, tokens


def _pairs(tensors: Mapping[str, Tensor], path: str | None) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    found: dict[int, dict[str, Tensor]] = {}
    others = []
    for name, tensor in tensors.items():
        if match := WEIGHT.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
        elif name not in (EMBEDDINGS, INDICES):
            others.append(name)
    if sorted(found) != list(range(len(found))) or any(len(pair) != 2 for pair in found.values()):
        raise BrokenCheckpoint("some of its weights.I.lora_down and weights.I.lora_up are missing", path)
    pairs = [(found[index]["down"], found[index]["up"]) for index in range(len(found))]
    for index, (down, up) in enumerate(pairs):
        if down.dim() == up.dim() == 2 and 0 in (down.shape[0], up.shape[1]):
            raise BrokenCheckpoint(f"weights.{index} has rank 0", path)
        numbers = down.is_floating_point() and up.is_floating_point() and down.numel() and up.numel()
        if not numbers or not down.dim() == up.dim() == 2 or down.shape[0] != up.shape[1]:
            text = f"weights.{index}: {list(down.shape)} and {list(up.shape)} make no low-rank change"
            raise BrokenCheckpoint(text, path)
    return pairs, others


def _embeddings(tensors: Mapping[str, Tensor], path: str | None) -> tuple[Rows | None, list[Token]]:
    """The changes of known tokens, and the new tokens in the order of their rows."""
    values, indices = tensors.get(EMBEDDINGS), tensors.get(INDICES)
    if values is None and indices is None:
        return None, []
    if values is None or indices is None or values.dim() != 2 or indices.shape != values.shape[:1]:
        raise BrokenCheckpoint("its embeddings do not match their indices", path)
    places = {int(index): place for place, index in enumerate(indices.tolist())}
    if len(places) < len(indices):
        raise IncompatibleCheckpoint("it defines one token twice", path)
    new = sorted(number for number in places if number >= VOCABULARY)
    if new != list(range(VOCABULARY, VOCABULARY + len(new))) or min(places, default=0) < 0:
        raise BrokenCheckpoint(f"its new tokens have the rows {new[:3]} instead of {VOCABULARY} and following", path)
    if len(new) > MAX_TOKENS:
        raise BrokenCheckpoint(f"it has {len(new):,} new tokens; more than {MAX_TOKENS:,} cannot be right", path)
    tokens = [Token("", values[places[number]][None]) for number in new]
    known = [place for number, place in places.items() if number < VOCABULARY]
    rows = Rows(indices[known].long(), values[known]) if known else None
    return rows, tokens


@cache
def attention_stems(config: StageCConfig) -> tuple[str, ...]:
    """Paths of the attention of each block, in the network's order."""
    ending = ".out_proj.weight"
    names = (name for name, _ in empty_network("stage_c", config).named_parameters())
    return tuple(name.removesuffix(ending) for name in names if name.endswith(ending))


@cache
def _due(config: StageCConfig) -> tuple[tuple[Shape, Shape], ...]:
    """(out, in) of out_proj and of the fused in_proj of each block."""
    shapes = {name: tuple(value.shape) for name, value in empty_network("stage_c", config).named_parameters()}
    weights = (shapes[f"{stem}.out_proj.weight"] for stem in attention_stems(config))
    return tuple((shape, (3 * shape[0], shape[1])) for shape in weights)


def _fits(shapes: Sequence[Shape], config: StageCConfig) -> bool:
    return shapes == [shape for pair in _due(config) for shape in pair]


def _settled(pairs: Sequence[tuple[Tensor, Tensor]], config: StageCConfig | None, path: str | None) -> StageCConfig:
    """The config of the Stage C whose attention the file changes.

    Raises:
        IncompatibleCheckpoint: its matrices are not those of attention in any known size.
    """
    shapes: list[Shape] = [(up.shape[0], down.shape[1]) for down, up in pairs]
    sizes = list(RELEASED_STAGE_C.values())
    for candidate in sizes if config is None else [config]:
        if _fits(shapes, candidate):
            return candidate
    made_for = next((size for size in sizes if _fits(shapes, size)), None)
    if made_for is not None and config is not None:
        made, this = variant("stage_c", made_for), variant("stage_c", config)
        raise IncompatibleCheckpoint(f"made for {made}, and this is {this}", path)
    width = shapes[0][1]
    wanted = config or next((size for size in sizes if size.levels[0].width == width), None)
    if wanted is None:
        raise IncompatibleCheckpoint(f"made for a Stage C {width} wide, {NOT_RELEASED}", path)
    due, this = 2 * len(attention_stems(wanted)), variant("stage_c", wanted)
    own_width = {level.width for level in wanted.levels}
    if not any(width in own_width for width in shapes[0]):
        raise IncompatibleCheckpoint(f"made for a Stage C {width} wide, and this is {this}", path)
    text = f"its {len(pairs)} matrices are not the {due} of attention in {this}: trained with other filters than .attn"
    raise IncompatibleCheckpoint(f"{text}, and the file does not say which", path)


def _by_order(pairs: Sequence[tuple[Tensor, Tensor]], config: StageCConfig) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for block, stem in enumerate(attention_stems(config)):
        (out_down, out_up), (in_down, in_up) = pairs[2 * block], pairs[2 * block + 1]
        for matrix, up in zip("qkv", in_up.chunk(3), strict=True):
            changes[f"{stem}.to_{matrix}.weight"] = LowRank(in_down, up, ALPHA)
        changes[f"{stem}.out_proj.weight"] = LowRank(out_down, out_up, ALPHA)
    return changes


def write(lora: Lora, config: StageCConfig | None) -> dict[str, Tensor]:
    """The tensors of the released trainer's file, all of one rank.

    Raises:
        IncompatibleCheckpoint: the LoRA has something that this form cannot hold.
    """
    changes = dict(lora.changes.get("stage_c", {}))
    if config is None:
        config = RELEASED_STAGE_C.get(lora.base or "")
        if config is None and changes:
            raise IncompatibleCheckpoint(f"for a Stage C of {NOT_RELEASED}", lora.path)
    tensors = _ordered(changes, config, lora.path) if changes and config is not None else {}
    if changes:
        text = f"the released form can only hold attention's matrices, not {', '.join(list(changes)[:3])}"
        raise IncompatibleCheckpoint(text, lora.path)
    return tensors | _written_embeddings(lora)


def _ordered(changes: dict[str, Change], config: StageCConfig, path: str | None) -> dict[str, Tensor]:
    """The matrices of attention; removes them from `changes`."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for stem, (out_shape, in_shape) in zip(attention_stems(config), _due(config), strict=True):
        out = changes.pop(f"{stem}.out_proj.weight", None)
        matrices = [changes.pop(f"{stem}.to_{matrix}.weight", None) for matrix in "qkv"]
        pairs += [_stacked([out], out_shape, path), _stacked(matrices, in_shape, path)]
    rank = max(down.shape[0] for down, _ in pairs)
    tensors = {}
    for index, (down, up) in enumerate(pairs):
        missing = rank - down.shape[0]
        tensors[f"weights.{index}.lora_down"] = torch.cat([down, down.new_zeros(missing, down.shape[1])])
        # The trainer multiplies by 1 / rank; our scale is in `up` already.
        tensors[f"weights.{index}.lora_up"] = torch.cat([up, up.new_zeros(up.shape[0], missing)], 1) * (rank / ALPHA)
    return tensors


def _stacked(changes: Sequence[Change | None], shape: Shape, path: str | None) -> tuple[Tensor, Tensor]:
    """One down and up, scale included, of changes stacked along dimension 0 into a matrix of this shape."""
    rows = shape[0] // len(changes)
    found = [change for change in changes if change is not None]
    if not found:
        return torch.zeros(1, shape[1]), torch.zeros(shape[0], 1)
    for change in found:
        if not isinstance(change, LowRank) or change.dora is not None or not change.fits(torch.Size((rows, shape[1]))):
            raise IncompatibleCheckpoint("the released form only holds low-rank matrices without DoRA", path)
        if change.down.dim() != 2 or change.up.dim() != 2:
            raise IncompatibleCheckpoint("the released form only holds matrices, of two dimensions", path)
    low = [change for change in found if isinstance(change, LowRank)]
    first = low[0].down
    if all(change.down is first or torch.equal(change.down, first) for change in low):
        downs, offsets = [first], [0] * len(changes)
    else:
        downs = [change.down for change in low]
        starts = iter(torch.tensor([0, *(d.shape[0] for d in downs)]).cumsum(0).tolist())
        offsets = [0 if change is None else next(starts) for change in changes]
    down = torch.cat([d.float() for d in downs])
    up = torch.zeros(shape[0], down.shape[0])
    for place, (change, offset) in enumerate(zip(changes, offsets, strict=True)):
        if isinstance(change, LowRank):
            up[place * rows : (place + 1) * rows, offset : offset + change.rank] = change.up.float() * change.scale
    return down, up


def _written_embeddings(lora: Lora) -> dict[str, Tensor]:
    changes = dict(lora.changes.get("text_encoder", {}))
    rows = changes.pop(TABLE, None)
    if changes or not isinstance(rows, Rows | None):
        raise IncompatibleCheckpoint("of the text encoder the released form only holds changes of tokens", lora.path)
    if long := [token.text for token in lora.tokens if len(token.vectors) > 1]:
        raise IncompatibleCheckpoint(f"the released form has one vector for a token; {long[0]} has several", lora.path)
    values = [token.vectors.float() for token in lora.tokens]
    indices = [torch.arange(VOCABULARY, VOCABULARY + len(values))]
    if rows is not None:
        values, indices = [rows.values.float(), *values], [rows.indices, *indices]
    if not values:
        return {}
    return {EMBEDDINGS: torch.cat(values), INDICES: torch.cat(indices)}
