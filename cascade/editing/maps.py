"""Where the image looks at the words of its prompt (Tang et al. 2022, DAAM)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models import AroundAttention, AttentionCall
from .attention import AttentionController, NetworkCall

PAIRS = 2**26
"""The most pairs of a query and a key, of all heads, whose attention is in memory at once."""


def attention_parts(q: Tensor, k: Tensor, heads: int) -> Iterator[tuple[slice, Tensor]]:
    """The attention of q [B, n, c] over k [B, m, c] as numbers [B, heads, part, m], float32, a part of n at a time."""
    rows = max(1, PAIRS // (heads * k.shape[1] * len(q)))
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    for start in range(0, q.shape[2], rows):
        part = slice(start, min(start + rows, q.shape[2]))
        logits = (q[:, :, part] @ k.transpose(-1, -2)).float()
        yield part, (logits / q.shape[-1] ** 0.5).softmax(dim=-1)


class WordMaps(AttentionController):
    """Records the attention to each text token in a run, with the prompt; the image does not change by a bit."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self.recorded = 0
        """How often attention was recorded."""

    def around(self, call: NetworkCall) -> AroundAttention | None:
        if True not in call.with_prompt:
            return None

        def record(block: AttentionCall) -> Tensor:
            rows = call.rows(len(block.q))
            assert rows is not None
            text = call.tokens.text_among(block.k.shape[1])
            self.add(
                torch.cat(
                    [p[..., text].sum(1) for _, p in attention_parts(block.q[rows], block.k[rows], block.heads)], 1
                )
                / block.heads,
                block.size,
            )
            return block.plain()

        return record

    def add(self, attention: Tensor, size: tuple[int, int]) -> None:
        """Attention [images, h w, text] of a block whose image has this size h, w."""
        found = attention.transpose(1, 2).unflatten(-1, size)
        if self._sum is not None and self._sum.shape != found.shape:
            larger = max(self._sum.shape[-2:], found.shape[-2:])
            self._sum, found = (F.interpolate(x, larger, mode="bilinear") for x in (self._sum, found))
        self._sum = found if self._sum is None else self._sum + found
        self.recorded += 1

    def of(self, places: Sequence[int]) -> Tensor:
        """Maps [images, 1, h, w] of the tokens at these places: their mean attention so far, in [0, 1]."""
        if self._sum is None:
            raise ValueError("nothing was recorded yet")
        return self._sum[:, list(places)].mean(1, keepdim=True) / self.recorded

    def shown(self, places: Sequence[int], size: Sequence[int]) -> Tensor:
        """As `of`, stretched from 0 to 1 in each image, and smoothly enlarged to its size (H, W)."""
        maps = F.interpolate(stretched(self.of(places)).float(), tuple(size), mode="bicubic")
        return maps.clamp(0, 1)


def stretched(maps: Tensor) -> Tensor:
    """Maps [B, 1, h, w], each from 0 at its lowest place to 1 at its highest."""
    low, high = (edge(maps, dim=(-2, -1), keepdim=True) for edge in (torch.amin, torch.amax))
    return (maps - low) / (high - low).clamp_min(1e-12)


def lit(images: Tensor, maps: Tensor) -> Tensor:
    """Images [B, 3, H, W] with the light of maps [B, 1, H, W]; a fifth of the rest shines through."""
    return images * (0.2 + 0.8 * maps)
