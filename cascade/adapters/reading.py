"""Reading LoRA files of any format into the internal form."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.detection import INSTRUCT, METADATA_KIND, detect_parts
from ..checkpoints.header import parsed_json, read_json
from ..checkpoints.loading import FLOAT8
from ..checkpoints.sources import TensorSource, open_tensors
from ..errors import BrokenCheckpoint, CheckpointError, IncompatibleCheckpoint, UnknownCheckpoint
from ..models import StageCConfig
from . import lycoris, released
from .changes import OFT, Change, Full, LoHa, LoKr, LowRank, Rows
from .lora import MAX_TOKENS, TABLE, Lora, Token
from .names import FORMATS, Place, find_place, format_of, recognize_foreign
from .tokens import MAX_PATTERNS, is_pattern

METADATA = "cascade.lora"
"""Key of the safetensors metadata under which our files keep tokens and training settings, as JSON."""
BUNDLED = re.compile(r"bundle_emb\.(.+)\.(clip_g|clip_g_out|clip_l|string_to_param\.\*)")
PEFT_CONFIG = "adapter_config.json"
SHOWN = 3


def read_lora(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    config: StageCConfig | None = None,
    tokens: Sequence[tuple[str, str | None]] = (),
) -> Lora:
    """The LoRA or the learned tokens in a file (safetensors, .pt, .bin) or state dict of any known format.

    Args:
        config: of the Stage C it is for. Files of the released trainer need it for sizes that were not released, and
            are checked against it if it is given. Other formats are checked when they are attached.
        tokens: (text, initializer) for each token whose text the file does not hold: those of the released trainer, as
            its YAML has them (`("[fernando]", "^dog</w>")`), and of stand-alone embeddings, whose initializer is None.

    Raises:
        FileNotFoundError: nothing is there.
        BrokenCheckpoint: truncated or empty, contains NaN or infinity, rank 0, or incomplete changes.
        UnsafeCheckpoint: a pickle with code in it.
        UnknownCheckpoint: not a LoRA for Stable Cascade; the message says what it is, if that is known.
        IncompatibleCheckpoint: for another size, of a form that is not supported, or with tokens that clash.
    """
    opened = list(open_tensors(source).values())
    if len(opened) != 1:
        raise UnknownCheckpoint("a folder of networks, not a LoRA", None if isinstance(source, Mapping) else source)
    found = opened[0]
    if not found.tensors:
        raise BrokenCheckpoint("it holds no tensors", found.path)
    lora = _read(found, config)
    lora = lora.named(list(tokens)) if tokens else lora
    _check_tokens(lora)
    return lora


def _tensors(source: TensorSource) -> dict[str, Tensor]:
    """All tensors of a file, float8 as bfloat16: it holds the same values, and torch can compute with it.

    Raises:
        BrokenCheckpoint: unreadable, or with NaN or infinity.
    """
    with source.reader() as get:
        tensors = {name: get(name) for name in source.tensors}
    tensors = {name: t.to(torch.bfloat16) if t.dtype in FLOAT8 else t for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise BrokenCheckpoint(f"NaN or infinity in {name}", source.path)
    return tensors


def _read(source: TensorSource, config: StageCConfig | None) -> Lora:
    path = None if source.path is None else str(source.path)
    own, training = _metadata(source)
    if released.is_released(source.tensors):
        changes, tokens = released.read(_tensors(source), config, path)
        return Lora(changes, _described(tokens, own), training, "released", path)
    if "clip_g" in source.tensors:
        return Lora({}, _described([_embedding(_tensors(source), path)], own), training, "embedding", path)
    bundled = {name: match for name in source.tensors if (match := BUNDLED.fullmatch(name))}
    # Names are looked at before gigabytes of something else are read.
    places = _places(source, [name for name in source.tensors if name not in bundled])
    tensors = _tensors(source)
    tokens = [_bundled(tensors, name, match, path) for name, match in bundled.items()]
    changes = _changes(tensors, places, path)
    form = format_of(list(places)) if places else "onetrainer"
    if form == "peft" and not own:
        changes, training = _scaled_by_config(changes, training, source)
    if source.metadata.get(METADATA_KIND) == "lora" and own.get("format") in FORMATS:
        form = own["format"]
    return Lora(changes, _described(tokens, own), training, form, path)


def _places(source: TensorSource, names: Sequence[str]) -> dict[str, Place]:
    """Where the tensor of each name belongs.

    Raises:
        UnknownCheckpoint: a name is unknown.
    """
    places = {name: find_place(name) for name in names}
    known = {name: place for name, place in places.items() if place is not None}
    if len(known) < len(places):
        raise UnknownCheckpoint(_what_else(source, [name for name in places if name not in known]), source.path)
    return known


def _what_else(source: TensorSource, unknown: Sequence[str]) -> str:
    if source.metadata.get(METADATA_KIND) == INSTRUCT:
        return "this is an instruct network, which edits images by instructions, not a LoRA"
    foreign = recognize_foreign({name: info.shape for name, info in source.tensors.items()})
    if foreign:
        return f"this is {foreign}, not for Stable Cascade"
    if len(unknown) < len(source.tensors):
        return f"{len(unknown)} of its {len(source.tensors)} tensors are unknown: {', '.join(unknown[:SHOWN])}"
    try:
        return f"this is a network, not a LoRA: {' and '.join(part.describe() for part in detect_parts({'': source}))}"
    except CheckpointError:
        return f"not a LoRA for Stable Cascade ({len(source.tensors)} tensors, the first {', '.join(unknown[:SHOWN])})"


def _scaled_by_config(
    changes: dict[str, dict[str, Change]], training: dict[str, Any], source: TensorSource
) -> tuple[dict[str, dict[str, Change]], dict[str, Any]]:
    """Changes with the alpha of PEFT's adapter_config.json, if there is one beside the file, and the settings in it.

    PEFT's tensors do not contain the alpha.

    Raises:
        BrokenCheckpoint: it is damaged.
        IncompatibleCheckpoint: it has a different alpha for each module.
    """
    folder = source.path if source.path is None or source.path.is_dir() else source.path.parent
    file = None if folder is None else folder / PEFT_CONFIG
    named = source.path is not None and (source.path.is_dir() or source.path.stem == "adapter_model")
    if file is None or not named or not file.exists():
        return changes, training
    settings = read_json(file)
    try:
        alpha, stabilized = float(settings["lora_alpha"]), bool(settings.get("use_rslora"))
        patterns = settings.get("alpha_pattern")
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise BrokenCheckpoint(f"it has no valid lora_alpha: {error}", file) from error
    if patterns or not math.isfinite(alpha):
        raise IncompatibleCheckpoint("it has an alpha_pattern, which is not supported", file)
    scaled: dict[str, dict[str, Change]] = {}
    for kind, own in changes.items():
        scaled[kind] = dict(own)
        for name, change in own.items():
            if isinstance(change, LowRank):
                # Rank-stabilized LoRA divides by the root of the rank (Kalajdzievski 2023).
                scaled[kind][name] = replace(change, alpha=alpha * math.sqrt(change.rank) if stabilized else alpha)
    return scaled, training | settings


def _metadata(source: TensorSource) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our own metadata, and the training settings in ours or in another trainer's."""
    text = source.metadata.get(METADATA)
    if text is None:
        return {}, dict(source.metadata)
    try:
        own = parsed_json(text)
        training = own.get("training", {})
        tokens = own.get("tokens", [])
        fine = isinstance(training, dict) and isinstance(own.get("format", ""), str)
        fine = fine and isinstance(tokens, list) and all(map(_is_named, tokens))
    except (ValueError, AttributeError, RecursionError) as error:
        raise BrokenCheckpoint(f"its metadata is damaged: {error}", source.path) from error
    if not fine:
        raise BrokenCheckpoint("its metadata does not describe a LoRA", source.path)
    return own, training


def _is_named(token: Any) -> bool:
    if not isinstance(token, dict):
        return False
    return isinstance(token.get("text"), str) and isinstance(token.get("initializer"), str | None)


def _described(tokens: Sequence[Token], own: Mapping[str, Any]) -> tuple[Token, ...]:
    """Tokens with the texts and initializers of our metadata."""
    entries = own.get("tokens", [])
    if len(entries) != len(tokens):
        return tuple(tokens)
    if all(token.text for token in tokens):
        initializers = {entry["text"]: entry.get("initializer") for entry in entries}
        return tuple(Token(t.text, t.vectors, initializers.get(t.text, t.initializer)) for t in tokens)
    return tuple(Token(e["text"], t.vectors, e.get("initializer")) for t, e in zip(tokens, entries, strict=True))


def _embedding(tensors: Mapping[str, Tensor], path: str | None) -> Token:
    if "clip_l" in tensors:
        raise UnknownCheckpoint("this is an embedding for SDXL: it has clip_l beside clip_g", path)
    if others := [name for name in tensors if name != "clip_g"]:
        raise IncompatibleCheckpoint(f"an embedding with more than clip_g: {', '.join(others[:SHOWN])}", path)
    return Token("", _vectors("clip_g", tensors["clip_g"], path))


def _bundled(tensors: Mapping[str, Tensor], name: str, match: re.Match[str], path: str | None) -> Token:
    text, encoder = match.groups()
    if encoder == "clip_l":
        raise UnknownCheckpoint(f"this is for SDXL: its token {text} has vectors for CLIP-L", path)
    if encoder == "clip_g_out":
        raise IncompatibleCheckpoint(
            f"the token {text} changes the text encoder's output, which is not supported", path
        )
    return Token(text, _vectors(name, tensors[name], path))


def _vectors(name: str, tensor: Tensor, path: str | None) -> Tensor:
    tensor = tensor[None] if tensor.dim() == 1 else tensor
    if tensor.dim() != 2 or not tensor.numel() or not tensor.is_floating_point():
        raise BrokenCheckpoint(f"{name} holds no vectors: {list(tensor.shape)}", path)
    return tensor


def _changes(
    tensors: Mapping[str, Tensor], places: Mapping[str, Place], path: str | None
) -> dict[str, dict[str, Change]]:
    """The changes that named tensors describe, by kind and parameter."""
    parts: dict[Place, dict[str, str]] = {}
    for name, place in places.items():
        target = Place(place.kind, place.parameters, "")
        if place.part in parts.setdefault(target, {}):
            raise IncompatibleCheckpoint(f"{parts[target][place.part]} and {name} are the same tensor", path)
        parts[target][place.part] = name
    changes: dict[str, dict[str, Change]] = {}
    for target, named in parts.items():
        change = _change({part: tensors[name] for part, name in named.items()}, next(iter(named.values())), path)
        own = changes.setdefault(target.kind, {})
        for parameter, piece in zip(target.parameters, split(change, len(target.parameters), path), strict=True):
            if parameter in own:
                raise IncompatibleCheckpoint(f"{next(iter(named.values()))} is also there under another name", path)
            own[parameter] = _as_rows(piece) if parameter == TABLE else piece
    return changes


def _change(parts: Mapping[str, Tensor], name: str, path: str | None) -> Change:
    """One change from its tensors; `name` is the name of one of them, for messages."""
    if set(parts) == {"full"}:
        if not parts["full"].is_floating_point() or not parts["full"].numel() or not parts["full"].dim():
            raise BrokenCheckpoint(f"{name} changes nothing: {list(parts['full'].shape)}", path)
        return Full(parts["full"])
    if set(parts) == {"rows", "indices"}:
        return _rows(parts["indices"], parts["rows"], path)
    if lycoris.is_lycoris(parts):
        return lycoris.read(parts, name, path)
    if {"down", "up", "mid"} <= set(parts):
        parts = lycoris.without_core(parts, name, path)
    if not {"down", "up"} <= set(parts) <= {"down", "up", "alpha", "dora", "magnitude"}:
        raise BrokenCheckpoint(f"{name}: its change has only {', '.join(sorted(parts))}", path)
    return _low_rank(parts, name, path)


def _low_rank(parts: Mapping[str, Tensor], name: str, path: str | None) -> LowRank:
    """A low-rank change with its shapes checked. Without an alpha its scale is 1."""
    down, up, alpha, dora = parts["down"], parts["up"], parts.get("alpha"), parts.get("dora")
    numbers = all(tensor.is_floating_point() for tensor in (down, up))
    shaped = numbers and min(down.dim(), up.dim()) >= 2 and max(down.dim(), up.dim()) <= 4
    if shaped and 0 in (down.shape[0], up.shape[1]):
        raise BrokenCheckpoint(f"{name} has rank 0", path)
    # Emptiness comes first: an empty matrix has no first row to look at.
    if not shaped or not down.numel() or not up.numel() or down.shape[0] != up[0].numel():
        raise BrokenCheckpoint(f"{name}: {list(down.shape)} and {list(up.shape)} make no low-rank change", path)
    if alpha is not None and alpha.numel() != 1:
        raise BrokenCheckpoint(f"{name}: its alpha has the shape {list(alpha.shape)}", path)
    if "magnitude" in parts:
        # PEFT keeps the lengths of the rows: a vector, or [1, out, 1, 1] for a convolution.
        dora = parts["magnitude"].reshape(-1, *[1] * (down.dim() - 1))
    if dora is not None and (dora.dim() != down.dim() or not dora.is_floating_point() or not dora.numel()):
        raise BrokenCheckpoint(f"{name}: its DoRA scale has the shape {list(dora.shape)}", path)
    return LowRank(down, up, float(down.shape[0] if alpha is None else alpha), dora)


def _rows(indices: Tensor, values: Tensor, path: str | None) -> Rows:
    whole = indices.dim() == 1 and not indices.is_floating_point() and values.dim() == 2 and len(indices) == len(values)
    if not whole or not len(indices) or int(indices.min()) < 0 or len(indices.unique()) != len(indices):
        raise BrokenCheckpoint(f"invalid rows of the token table: {list(indices.shape)}, {list(values.shape)}", path)
    return Rows(indices.long(), values)


def split(change: Change, count: int, path: str | None) -> list[Change]:
    """A change of a fused matrix as changes of its `count` equal parts along dimension 0.

    Raises:
        IncompatibleCheckpoint: it cannot be split.
    """
    if count == 1:
        return [change]
    if isinstance(change, Full) and change.value.shape[0] % count == 0:
        return [Full(value) for value in change.value.chunk(count)]
    if isinstance(change, LowRank) and change.up.shape[0] % count == 0:
        dora = change.dora
        if dora is None or dora.shape[0] == change.up.shape[0]:
            doras = [None] * count if dora is None else dora.chunk(count)
            ups = change.up.chunk(count)
            return [LowRank(change.down, up, change.alpha, d) for up, d in zip(ups, doras, strict=True)]
    if isinstance(change, LoHa | LoKr | OFT) and (parts := lycoris.split(change, count)):
        return parts
    raise IncompatibleCheckpoint("its change of the fused attention matrix cannot be split into q, k and v", path)


def _as_rows(change: Change) -> Change:
    """A low-rank change of a table whose `up` only selects rows, as those rows: other formats hold them like that."""
    if not isinstance(change, LowRank) or change.dora is not None or (change.up.dim(), change.down.dim()) != (2, 2):
        return change
    picked = change.up != 0
    if not bool((picked.sum(0) == 1).all()) or not bool((picked.sum(1) <= 1).all()):
        return change
    indices = picked.float().argmax(0)
    factors = change.up[indices, torch.arange(change.rank)] * change.scale
    return Rows(indices, factors[:, None] * change.down)


def _check_tokens(lora: Lora) -> None:
    if len(lora.tokens) > MAX_TOKENS:
        text = f"it has {len(lora.tokens):,} learned tokens; more than {MAX_TOKENS:,} cannot be right"
        raise BrokenCheckpoint(text, lora.path)
    patterns = sum(token.initializer is not None and is_pattern(token.initializer) for token in lora.tokens)
    if patterns > MAX_PATTERNS:
        text = f"{patterns:,} of its tokens begin as patterns; more than {MAX_PATTERNS} are not searched for"
        raise IncompatibleCheckpoint(text, lora.path)
    texts = [token.text.lower() for token in lora.tokens if token.text]
    if twice := [text for text, count in Counter(texts).items() if count > 1]:
        raise IncompatibleCheckpoint(f"it defines the token {twice[0]} twice", lora.path)
