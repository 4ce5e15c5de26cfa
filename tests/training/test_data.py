"""Images, their order, and the caches made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cascade.tiny.grammar import COLORS
from cascade.tiny.hearts import WORD
from cascade.training.data import (
    CHUNK,
    DrawnImages,
    ImageSettings,
    Order,
    cached,
    open_images,
    resize,
    to_images,
    to_pixels,
)


def test_every_epoch_holds_every_image_once_in_an_order_of_its_own() -> None:
    order = Order(10, seed=1)
    rows = np.concatenate([order.rows(i, 4) for i in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])


def test_the_order_follows_from_the_index_alone() -> None:
    forward = [Order(7, 3).rows(i, 5).tolist() for i in range(6)]
    order = Order(7, 3)
    assert [order.rows(i, 5).tolist() for i in reversed(range(6))][::-1] == forward
    assert len(Order(3, 0).rows(2, 10)) == 10


def test_drawn_images_do_not_depend_on_how_they_are_read() -> None:
    source = open_images(ImageSettings(count=5, seed=4, size=64))
    assert len(source) == 5
    images, captions = source.read(0, 5)
    assert (images.shape, images.dtype) == ((5, 64, 64, 3), np.uint8)
    one, caption = source.read(3, 1)
    assert np.array_equal(one[0], images[3])
    assert caption[0] == captions[3]


def test_one_in_four_of_the_mixed_images_is_a_heart() -> None:
    mixed, drawn = (open_images(ImageSettings(source=kind, count=40, seed=4, size=64)) for kind in ("mixed", "drawn"))
    images, captions = mixed.read(0, 40)
    hearts = [i for i, caption in enumerate(captions) if WORD in caption]
    assert hearts == list(range(0, 40, 4))
    assert {caption.replace("small ", "").replace("large ", "").split()[1] for caption in captions[::4]} == set(COLORS)
    others = [i for i in range(40) if i % 4]
    assert np.array_equal(images[others], drawn.read(0, 40)[0][others])
    some, told = mixed.read(6, 9)
    assert np.array_equal(some, images[6:15])
    assert told == captions[6:15]


class Counting(DrawnImages):
    reads = 0

    def read(self, start: int, count: int) -> tuple[np.ndarray, list[str]]:
        self.reads += 1
        return super().read(start, count)


def test_a_cache_is_made_once_and_named_by_what_it_depends_on(tmp_path: Path) -> None:
    source = Counting(CHUNK + 3, seed=1, size=32)
    seen: list[tuple[int, int]] = []

    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": pixels.mean(axis=(1, 2), dtype=np.float32), "first": pixels[:, 0, 0]}

    first = cached(tmp_path, "x", source, compute, key="a", on_chunk=lambda i, n: seen.append((i, n)))
    again = cached(tmp_path, "x", source, compute, key="a")
    assert (source.reads, seen) == (2, [(CHUNK, CHUNK + 3), (CHUNK + 3, CHUNK + 3)])
    cached(tmp_path, "x", source, compute, key="b")
    assert source.reads == 4
    images, captions = source.read(0, CHUNK + 3)
    assert again.captions == captions
    assert np.array_equal(first.arrays["mean"], images.mean(axis=(1, 2), dtype=np.float32))
    assert torch.equal(again.take("first", np.array([4, 2])), torch.from_numpy(images[[4, 2], 0, 0]))


def test_a_cache_that_failed_leaves_nothing(tmp_path: Path) -> None:
    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        cached(tmp_path, "x", DrawnImages(2, 1, 32), compute)
    assert list(tmp_path.iterdir()) == []


def test_images_and_images_are_inverse() -> None:
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    images = to_images(pixels)
    assert images.shape == (2, 3, 8, 8)
    assert np.array_equal(to_pixels(images), pixels.numpy())


def test_resize_averages_when_it_shrinks() -> None:
    images = torch.rand(1, 3, 64, 64)
    assert resize(images, 64) is images
    small = resize(images, 8)
    assert small.shape == (1, 3, 8, 8)
    assert abs(small.mean() - images.mean()) < 0.02
    assert small.std() < 0.5 * images.std()
