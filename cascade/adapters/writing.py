"""Writing LoRAs in our own format or in that of another trainer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.detection import METADATA_KIND
from ..checkpoints.saving import save_tensors
from ..errors import IncompatibleCheckpoint, printable, shown
from ..models import StageCConfig
from . import lycoris, released
from .changes import OFT, Change, Full, LoHa, LoKr, LowRank, Rows
from .lora import TABLE, Lora
from .names import FORMATS, Format, name_of
from .reading import METADATA
from .tokens import NAMELESS

DEFAULT = "comfyui"
WRITABLE = (DEFAULT, *(name for name in FORMATS if name != DEFAULT), "released", "embedding")
EMBEDDINGS = "text_model.embeddings."
"""Start of the names of the text encoder's tables."""


def save_lora(
    lora: Lora,
    path: str | os.PathLike[str],
    *,
    format: str = DEFAULT,
    config: StageCConfig | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LoRA as a safetensors file, atomically.

    What a format cannot hold is an error, never left out. Every format also gets our own metadata (tokens, their
    initializers, training settings), which other programs ignore.

    Args:
        format: one of `WRITABLE`.
        config: of its Stage C; the released format needs it for sizes that were not released.
        dtype: of the factors and vectors; None keeps theirs.

    Raises:
        ValueError: an unknown format.
        IncompatibleCheckpoint: the LoRA has something that the format cannot hold.
        OSError: it could not be written; an existing file is unchanged.
    """
    tensors = to_tensors(lora, format, config)
    if dtype is not None:
        # An alpha is a setting, kept as it is.
        tensors = {n: t.to(dtype) if t.is_floating_point() and t.dim() else t for n, t in tensors.items()}
    save_tensors(tensors, path, metadata_of(lora, format))


def metadata_of(lora: Lora, format: str = DEFAULT) -> dict[str, str]:
    """Our metadata of a LoRA: base, ranks, alphas, modules, tokens, training settings."""
    names = [name for changes in lora.changes.values() for name in changes]
    described: dict[str, Any] = {
        "format": format,
        "base": lora.base,
        "kinds": lora.kinds,
        "ranks": lora.ranks,
        "alphas": lora.alphas,
        "modules": sorted({_without_numbers(name) for name in names}),
        "tokens": [{"text": token.text, "initializer": token.initializer} for token in lora.tokens],
        "training": dict(lora.training),
    }
    return {METADATA_KIND: "lora", METADATA: json.dumps(described)}


def _without_numbers(name: str) -> str:
    return ".".join(part for part in name.split(".")[:-1] if not part.isdigit())


def to_tensors(lora: Lora, format: str, config: StageCConfig | None = None) -> dict[str, Tensor]:
    """The tensors of a file in a format, as in `save_lora`."""
    if lora.changes.get("stage_b") and format != "cascade":
        raise IncompatibleCheckpoint("it changes Stage B, which only our own format (cascade) can hold", lora.path)
    if format == "released":
        return released.write(lora, config)
    if format == "embedding":
        return _embedding(lora)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(WRITABLE)}, not {format!r}")
    tensors: dict[str, Tensor] = {}
    for kind, changes in lora.changes.items():
        for name, change in changes.items():
            tensors |= _written(kind, name, change, FORMATS[format], lora.path)
    return tensors | _bundled(lora, format)


def _written(kind: str, name: str, change: Change, form: Format, path: str | None) -> dict[str, Tensor]:
    """One change under the names of a format."""
    endings = form.endings
    if isinstance(change, Rows) and "rows" not in endings and name == TABLE:
        change = as_low_rank(change, path)
    if isinstance(change, Full) and "delta" in endings:
        return {f"{form.prefixes[kind]}{name}{endings['delta']}": change.value}
    module, _, parameter = name.rpartition(".")
    if form.rest is not None and (isinstance(change, Full) or module.startswith(EMBEDDINGS)):
        # A parameter that is neither a weight nor a bias is named itself.
        stem: str | None = form.rest[kind] + (module if parameter in ("weight", "bias") else name)
        parameter = "bias" if parameter == "bias" else "weight"
    else:
        stem = name_of(kind, module, form)
    parts = _parts(change, parameter, endings)
    if stem is None or any(part not in endings for part in parts):
        held = "change" if isinstance(change, Rows) else change.title
        raise IncompatibleCheckpoint(f"{form.title} has no place for the {held} of {name}", path)
    return {stem + endings[part]: tensor for part, tensor in parts.items()}


MAX_ROWS = 1000
"""Rows of the token table that another format holds. Each takes a number for every token of the vocabulary there."""


def as_low_rank(rows: Rows, path: str | None = None) -> LowRank:
    """Rows of a table as factors whose `up` selects them.

    Raises:
        IncompatibleCheckpoint: more than `MAX_ROWS`, or rows past the vocabulary.
    """
    count = len(rows.indices)
    if count > MAX_ROWS or rows.outputs > released.VOCABULARY:
        text = f"it changes {count:,} tokens, up to the id {rows.outputs - 1:,}: only our own format can hold that"
        raise IncompatibleCheckpoint(text, path)
    up = torch.zeros(released.VOCABULARY, count)
    up[rows.indices, torch.arange(count)] = 1.0
    return LowRank(rows.values, up, float(count))


def _parts(change: Change, parameter: str, endings: Mapping[str, str]) -> dict[str, Tensor]:
    if isinstance(change, Rows):
        return {"rows": change.values, "indices": change.indices}
    if isinstance(change, Full):
        return {"full" if parameter == "weight" else f"full_{parameter}": change.value}
    if isinstance(change, OFT):
        return lycoris.written(change)
    if isinstance(change, LoHa | LoKr):
        return lycoris.written(change) | ({} if change.dora is None else {"dora": change.dora})
    parts = {"down": change.down, "up": change.up}
    if "alpha" in endings:
        parts["alpha"] = torch.tensor(change.alpha)
    elif change.scale != 1:
        parts["up"] = change.up.float() * change.scale
    if change.dora is None:
        return parts
    if "magnitude" in endings and change.dora.numel() == change.dora.shape[0]:
        magnitude = change.dora.flatten() if change.dora.dim() == 2 else change.dora.transpose(0, 1)
        return parts | {"magnitude": magnitude}
    parts["dora"] = change.dora
    return parts


def _bundled(lora: Lora, format: str) -> dict[str, Tensor]:
    """The tensors of tokens. Other programs read them as absolute vectors."""
    if format != "cascade" and (relative := [token.text for token in lora.tokens if token.initializer is not None]):
        text = f"its token {relative[0]} is a change of its initializer, which {FORMATS[format].title} cannot hold: "
        raise IncompatibleCheckpoint(text + "make it absolute first, with the text encoder", lora.path)
    if any(not token.text for token in lora.tokens):
        raise IncompatibleCheckpoint(NAMELESS, lora.path)
    if strange := [token.text for token in lora.tokens if printable(token.text) != token.text]:
        raise IncompatibleCheckpoint(f"no file can hold a token named {shown(strange[0])}: rename it", lora.path)
    return {f"bundle_emb.{token.text}.clip_g": token.vectors for token in lora.tokens}


def _embedding(lora: Lora) -> dict[str, Tensor]:
    if lora.changes or len(lora.tokens) != 1 or lora.tokens[0].initializer is not None:
        raise IncompatibleCheckpoint("a stand-alone embedding can only hold one token with absolute vectors", lora.path)
    return {"clip_g": lora.tokens[0].vectors}
