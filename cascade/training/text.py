"""Captions as tokens, as pooled embeddings computed once for a training, and as conditions of Stage C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conditioning import StageCInputs, TextEmbedding, TextEncoder
from ..models import Conditions, StageC
from .data import Cache, Streamed

SAMPLES = 4
_TEXTS = 1
"""A part of a batch's seed."""
LOOKED_AT = 1000
"""Captions among which different ones are looked for."""
FEW = 20_000
"""Captions whose embeddings are kept: 5 kB each of the released text encoder's pooled ones."""
_AT_ONCE = 256


def tokenized(encoder: TextEncoder, texts: Sequence[str], chunks: int = 1) -> tuple[Tensor, Tensor]:
    """(ids [B, n, 77], mask [B, n, 77]) of at most so many chunks; the rest of a longer text is cut off."""
    ids, mask = encoder.tokenize(texts)
    return ids[:, :chunks], mask[:, :chunks]


def tokenize_captions(encoder: TextEncoder, captions: Sequence[str], chunks: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [U, n, 77], mask [U, n, 77], row of each caption in them [N]), n up to `chunks`; captions that are equal
    share a row."""
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    return *tokenized(encoder, list(rows), chunks), torch.tensor([rows[caption] for caption in captions])


def batch_texts(data: Cache | Streamed, rows: np.ndarray, seed: tuple[int, int], dropped: np.ndarray) -> list[str]:
    """The texts of a batch's images, as they are seen this time; none where one is dropped [B]."""
    texts = data.texts(rows, (*seed, _TEXTS))
    return ["" if out else text for text, out in zip(texts, dropped, strict=True)]


def prompts_for_samples(given: Sequence[str] | None, captions: Sequence[str]) -> tuple[str, ...]:
    """The prompts that samples are made of: those of the settings, else the first few captions that differ."""
    return tuple(given) if given else tuple(dict.fromkeys(captions[:LOOKED_AT]))[:SAMPLES]


def are_few(data: Cache | Streamed) -> bool:
    """Whether every image has one text alone, and all of them fit into memory as embeddings."""
    return isinstance(data, Cache) and not data.settings.random and len(data) <= FEW


@torch.no_grad()
def pooled_captions(model: nn.Module, captions: Sequence[str]) -> Tensor:
    """The pooled embedding [N, 1, c] of every caption, on the model's device."""
    encoder = TextEncoder(model)
    ids, mask, rows = tokenize_captions(encoder, captions)
    parts: Any = zip(ids.split(_AT_ONCE), mask.split(_AT_ONCE), strict=True)
    pooled = torch.cat([encoder.embed(i, m).pooled for i, m in parts])
    return pooled[rows.to(pooled.device)]


def text_conditions(net: StageC, text: TextEmbedding) -> Conditions:
    """Stage C's conditions for texts [B] without an image."""
    return net.conditions(**StageCInputs.without_image(text, net.config.clip_img).as_kwargs())
