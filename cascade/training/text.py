"""Captions as tokens, as pooled embeddings computed once for a training, and as conditions of Stage C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..conditioning import StageCInputs, TextEmbedding, TextEncoder
from ..models import Conditions, StageC

SAMPLES = 4
_AT_ONCE = 256


def tokenize_captions(encoder: TextEncoder, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [U, 1, 77], mask [U, 1, 77], row of each caption in them [N]); captions that are equal share a row."""
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    ids, mask = encoder.tokenize(list(rows))
    # A training uses one chunk; the rest of a longer caption is cut off.
    return ids[:, :1], mask[:, :1], torch.tensor([rows[caption] for caption in captions])


def prompts_for_samples(given: Sequence[str] | None, captions: Sequence[str]) -> tuple[str, ...]:
    """The prompts that samples are made of: those of the settings, else the first few captions that differ."""
    return tuple(given) if given else tuple(dict.fromkeys(captions))[:SAMPLES]


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
