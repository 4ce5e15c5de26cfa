"""Images, their order, and the caches made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cascade.errors import InvalidConfig
from cascade.training.data import (
    CHUNK,
    IMAGE_SOURCES,
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


def test_held_out_images_are_never_in_the_order() -> None:
    order = Order(10, 3, held_out=3)
    trained = {int(row) for i in range(8) for row in order.rows(i, 7)}
    held = {int(row) for row in order.held_out().rows(0, 3)}
    assert (len(trained), len(held)) == (7, 3)
    assert trained | held == set(range(10))
    assert Order(10, 3).rows(0, 10).tolist() == Order(10, 3, 0).rows(0, 10).tolist()
    with pytest.raises(InvalidConfig, match="held_out: 10 of 10 images leaves none"):
        Order(10, 3, held_out=10)


class Numbers:
    """Gray images, each of its number."""

    def __init__(self, count: int, size: int = 32) -> None:
        self.count, self.size, self.name, self.reads = count, size, f"numbers-{count}", 0

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, count: int) -> tuple[np.ndarray, list[str]]:
        self.reads += 1
        numbers = np.arange(start, start + count)
        images = np.broadcast_to(numbers[:, None, None, None] % 256, (count, self.size, self.size, 3))
        return images.astype(np.uint8), [str(number) for number in numbers]


def test_a_source_is_found_by_the_name_it_is_registered_under(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="no image source 'numbers'; there are folder"):
        ImageSettings(source="numbers")
    monkeypatch.setitem(IMAGE_SOURCES, "numbers", lambda settings: Numbers(settings.count or 0, settings.size))
    assert open_images(ImageSettings(source="numbers", count=3, size=64)).read(2, 1)[1] == ["2"]


def test_a_cache_is_made_once_and_named_by_what_it_depends_on(tmp_path: Path) -> None:
    source = Numbers(CHUNK + 3)
    seen: list[tuple[int, int]] = []

    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": pixels.mean(axis=(1, 2), dtype=np.float32), "first": pixels[:, 0, 0]}

    first = cached(tmp_path, "x", source, compute, key="a", on_chunk=lambda i, n: seen.append((i, n)))
    again = cached(tmp_path, "x", source, compute, key="a")
    assert (source.reads, seen) == (2, [(CHUNK, CHUNK + 3), (CHUNK + 3, CHUNK + 3)])
    cached(tmp_path, "x", source, compute, key="b")
    assert source.reads == 4
    images, captions = source.read(0, CHUNK + 3)
    assert list(again.captions) == captions
    assert np.array_equal(first.rows("mean", np.arange(CHUNK + 3)), images.mean(axis=(1, 2), dtype=np.float32))
    assert torch.equal(again.take("first", np.array([4, 2])), torch.from_numpy(images[[4, 2], 0, 0]))


def test_a_cache_that_failed_goes_on_behind_its_last_shard(tmp_path: Path) -> None:
    whole, broken = Numbers(3 * CHUNK), Numbers(3 * CHUNK)
    expected = cached(tmp_path / "whole", "x", whole, lambda pixels: {"images": pixels})

    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        if broken.reads == 2:
            raise RuntimeError("out of memory")
        return {"images": pixels}

    with pytest.raises(RuntimeError):
        cached(tmp_path / "broken", "x", broken, compute)
    broken.reads = 10
    again = cached(tmp_path / "broken", "x", broken, compute)
    assert broken.reads == 12
    rows = np.arange(3 * CHUNK)
    assert np.array_equal(again.rows("images", rows), expected.rows("images", rows))
    assert list(again.captions) == list(expected.captions)


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
