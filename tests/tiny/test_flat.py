"""Broad flat images."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.tiny import drawing, flat
from cascade.tiny import image_sources as image_sources  # registers tiny_flat
from cascade.tiny.analysis import describe, foreground, outline_overlap
from cascade.training.data import ImageSettings, open_images


def test_an_image_depends_on_its_seed_and_number_alone() -> None:
    source = open_images(ImageSettings(source="tiny_flat", count=12, seed=4, size=64))
    images, captions = source.read(0, 12)
    assert (images.shape, images.dtype, captions) == ((12, 64, 64, 3), np.uint8, [""] * 12)
    assert np.array_equal(source.read(7, 2)[0], images[7:9])
    assert not np.array_equal(flat.batch(5, 1, size=64)[0][0], images[0])


def test_a_part_are_the_images_of_the_grammar() -> None:
    images, _ = flat.batch(4, 40, size=64)
    of_grammar = drawing.batch(4, 40, size=64).images
    same = [np.array_equal(image, other) for image, other in zip(images, of_grammar, strict=True)]
    assert 6 <= sum(same) <= 22


def test_every_kind_can_be_seen_at_its_place() -> None:
    for name, kind in {**flat.TRAINED, **flat.HELD_OUT}.items():
        cover = flat.mask(kind, np.random.default_rng(1), 0.6, 0.4, 0.25, 64)
        assert cover.max() == 1, name
        assert cover[:, :16].max() == cover[48:].max() == 0, name  # nothing reaches farther than the radius
        assert 0.02 < cover.mean() < 0.25, name


@pytest.mark.parametrize("kind", flat.HELD_OUT_KINDS)
def test_held_out_kinds_are_plain_and_clear(kind: str) -> None:
    for seed in range(4):
        image = flat.draw_held_out(kind, np.random.default_rng(seed))
        assert describe(image).items, seed
        assert outline_overlap(image, image) == 1


def test_the_middle_of_a_ring_is_background() -> None:
    for seed in range(4):
        rows, columns = np.nonzero(seen := foreground(flat.draw_held_out("ring", np.random.default_rng(seed))))
        assert not seen[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]


def test_overlap_of_outlines() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    left, right = image.copy(), image.copy()
    left[16:48, 8:40], right[16:48, 24:56] = 255, 255
    assert outline_overlap(left, right) == pytest.approx(1 / 3, abs=0.05)
    assert outline_overlap(image, left) == 0
    assert outline_overlap(image, image) == 0
