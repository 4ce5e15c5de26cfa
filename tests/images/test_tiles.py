"""Tiles cover what they are of; stitched is the same as whole, blended goes over smoothly."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cascade.images import Box, blended, seam_ratio, stitched
from cascade.images.tiles import spans
from tests.support import relative_error


@given(
    length=st.integers(1, 3000),
    side=st.integers(1, 400),
    overlap=st.integers(0, 200),
    align=st.sampled_from([1, 2, 16]),
)
def test_spans_cover_all_and_overlap_enough(length: int, side: int, overlap: int, align: int) -> None:
    if side - overlap - align < 0:
        if length > side:
            with pytest.raises(ValueError, match="larger tiles"):
                spans(length, side, overlap, align)
        return
    found = spans(length, side, overlap, align)
    assert (found[0].start, found[-1].stop) == (0, length)
    assert all(before.stop - after.start >= overlap for before, after in pairwise(found))
    assert all(span.start % align == 0 and span.stop - span.start < side + align for span in found)


def neighbors(x: Tensor) -> Tensor:
    """Each position becomes the mean of those up to 2 away, more slowly at the border."""
    return F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)


@pytest.mark.parametrize("size", [(12, 9), (40, 70), (97, 33)])
def test_stitched_is_whole(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    assert relative_error(stitched(neighbors, x, side=16, margin=2), neighbors(x)) < 1e-6


def test_stitched_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    stitched(neighbors, torch.rand(1, 3, 40, 16), side=16, margin=2, on_tile=lambda *tile: told.append(tile))
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    assert len(told) > 2


def test_stitched_works_out_no_more_than_it_must() -> None:
    seen: list[tuple[int, ...]] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        return neighbors(x)

    stitched(watched, torch.rand(1, 1, 34, 10), side=32, margin=2)
    assert seen == [(19, 10)] * 2


@pytest.mark.parametrize("size", [(64, 64), (81, 130)])
def test_stitched_makes_larger_and_smaller_things(size: tuple[int, int]) -> None:
    def up(x: Tensor) -> Tensor:
        return F.interpolate(neighbors(x), scale_factor=4, mode="nearest")

    def down(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4), mode="replicate")
        return F.avg_pool2d(neighbors(padded), 4)

    x = torch.rand(1, 2, *size)
    assert relative_error(stitched(up, x, side=20, margin=3, up=4), up(x)) < 1e-6
    assert relative_error(stitched(down, x, side=32, margin=4, down=4), down(x)) < 1e-6


def test_blended_gives_equal_parts_back_and_mixes_unequal_ones() -> None:
    x = torch.rand(2, 3, 50, 70)
    seen: list[Box] = []

    def same(part: Tensor, box: Box) -> Tensor:
        seen.append(box)
        assert torch.equal(part, box.of(x))
        return part

    assert relative_error(blended(same, x, side=24, overlap=8), x) < 1e-6
    assert len(seen) == 3 * 4
    numbered = blended(lambda part, box: torch.full_like(part, float(box.columns.start)), x, side=100, overlap=8)
    assert torch.equal(numbered, torch.zeros_like(x))
    rising = blended(lambda part, box: torch.full_like(part, float(box.columns.start)), x, side=50, overlap=20)[0, 0, 0]
    assert rising[0] == 0
    assert rising[-1] == 20
    assert bool((rising.diff() >= 0).all())
    assert float(rising.diff().max()) < 2


def test_what_cannot_be_tiled_is_said() -> None:
    with pytest.raises(ValueError, match="tiles of 16 cannot overlap by 20"):
        blended(lambda part, box: part, torch.zeros(1, 1, 40, 40), side=16, overlap=20)


def test_a_seam_is_a_gradient_that_is_not_beside_it() -> None:
    images = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    assert seam_ratio(images, [32], [32, 64], period=8) == pytest.approx(1, abs=0.05)
    right = torch.zeros(96)
    right[32:] = 0.1
    assert seam_ratio(images + right, [], [32], period=8) > 2
    assert seam_ratio(images + right, [], [64], period=8) == pytest.approx(1, abs=0.1)
    assert seam_ratio((images + right).mT, [32], [], period=8) > 2
    # A network's patches have borders of their own, which are no seams of tiles.
    patches = torch.tensor([0.0, 0.1]).repeat(6).repeat_interleave(8)
    assert seam_ratio(images + patches, [], [32, 64], period=8) == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="with 8 pixels beside them in 64 pixels"):
        seam_ratio(images, [60], [], period=8)
