"""Large tensors in overlapping tiles: stitched if a result depends only on a limited area around it, else blended."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Rows or columns from start up to, not including, stop."""

    start: int
    stop: int

    def scaled(self, up: int, down: int = 1) -> Span:
        """The same span in a tensor that is up / down times as large; the end is rounded up."""
        return Span(self.start * up // down, ceil(self.stop * up / down))


class Box(NamedTuple):
    """A part of an image or latent."""

    rows: Span
    columns: Span

    def of(self, x: Tensor) -> Tensor:
        """This part of x [..., H, W], a view."""
        return x[..., self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]

    def scaled(self, up: int, down: int = 1) -> Box:
        """The same part of a tensor that is up / down times as large."""
        return Box(self.rows.scaled(up, down), self.columns.scaled(up, down))


def spans(length: int, side: int, overlap: int, align: int = 1) -> list[Span]:
    """Spans of about `side` that cover `length`, evenly, neighbors overlapping by `overlap` or more.

    Starts are multiples of `align`. Raises ValueError if the overlap is too large for the tiles.
    """
    if length <= side:
        return [Span(0, length)]
    stride = side - overlap - (align - 1)
    if stride < 1:
        raise ValueError(f"tiles of {side} cannot overlap by {overlap}; take larger tiles or a smaller overlap")
    count = 1 + ceil((length - side) / stride)
    starts = [(length - side) * i // (count - 1) // align * align for i in range(count)]
    return [Span(start, length if start == starts[-1] else start + side) for start in starts]


def stitched(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    side: int,
    margin: int,
    up: int = 1,
    down: int = 1,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`function(x)` tile by tile, the same to rounding: results depend on at most `margin` positions around.

    x: [..., H, W]. function: turns a part of x into one that is up / down times as large. side, margin: in positions of
    x; what is within `margin` of a tile's inner border is not used. on_tile: called with the number of tiles done and
    of all.

    Raises ValueError if the margins are too large for the tiles.
    """
    rows, columns = (_with_cores(length, side, 2 * margin, down) for length in x.shape[-2:])
    if len(rows) == len(columns) == 1:
        return function(x)
    result, done = None, 0
    for row, row_core in rows:
        for column, column_core in columns:
            part = function(Box(row, column).of(x))
            if result is None:
                size = (ceil(length * up / down) for length in x.shape[-2:])
                result = part.new_empty(*part.shape[:-2], *size)
            used = Box(row_core, column_core).scaled(up, down)
            top, left = row.start * up // down, column.start * up // down
            inside = Box(
                Span(used.rows.start - top, used.rows.stop - top),
                Span(used.columns.start - left, used.columns.stop - left),
            )
            used.of(result).copy_(inside.of(part))
            done += 1
            if on_tile is not None:
                on_tile(done, len(rows) * len(columns))
    assert result is not None
    return result


def _with_cores(length: int, side: int, overlap: int, align: int) -> list[tuple[Span, Span]]:
    """Spans, and the part of each that is used: the seams are in the middle of the overlaps.

    Spans are as short as their number allows, because overlaps are computed twice.
    """
    overlap += align - 1
    count = len(spans(length, side, overlap, align))
    shortest = ceil((length + (count - 1) * (overlap + align - 1)) / count)
    found = spans(length, min(side, ceil(shortest / align) * align), overlap, align)
    seams = [(after.start + before.stop) // 2 // align * align for before, after in pairwise(found)]
    cores = [Span(start, stop) for start, stop in zip([0, *seams], [*seams, length], strict=True)]
    return list(zip(found, cores, strict=True))


def blended(function: Callable[[Tensor, Box], Tensor], x: Tensor, *, side: int, overlap: int, align: int = 1) -> Tensor:
    """A function of x [B, c, H, W] that keeps its size, tile by tile, blended where tiles overlap.

    function: called with a part of x and its position. A tile's weight falls linearly to its inner borders, as in
    MultiDiffusion (Bar-Tal et al. 2023, eq. 5). Raises ValueError if the overlap is too large for the tiles.
    """
    rows, columns = (spans(length, side, overlap, align) for length in x.shape[-2:])
    if len(rows) == len(columns) == 1:
        return function(x, Box(rows[0], columns[0]))
    row_weights, column_weights = (_ramps(found) for found in (rows, columns))
    total, weights = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            box = Box(row, column)
            weight = (row_weight[:, None] * column_weight).to(x)
            box.of(total).add_(function(box.of(x), box) * weight)
            box.of(weights).add_(weight)
    return total / weights


def _ramps(found: list[Span]) -> list[Tensor]:
    """A weight for each position of each span: rising from and falling to its neighbors, 1 in between."""
    ramps = [torch.ones(span.stop - span.start) for span in found]
    for (before, after), (left, right) in zip(pairwise(found), pairwise(ramps), strict=True):
        shared = before.stop - after.start
        rising = (torch.arange(shared) + 0.5) / shared
        right[:shared] *= rising
        left[-shared:] *= rising.flip(0)
    return ramps
