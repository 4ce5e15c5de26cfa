"""The analysis reads drawn images rightly, also blurred, noisy and tilted, and does not take a blob for a shape."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from cascade.tiny import analysis, drawing, grammar
from cascade.tiny.analysis import Description, describe
from cascade.tiny.grammar import Item, Scene

SIDE = 256


@cache
def drawn() -> drawing.Drawings:
    return drawing.batch(7, 60)


def change(image: np.ndarray, how: str) -> np.ndarray:
    pixels = image / 255
    if how == "tilted":
        return np.clip(ndimage.rotate(pixels, 8, reshape=False, order=1, mode="nearest"), 0, 1)
    if "blurred" in how:
        pixels = ndimage.gaussian_filter(pixels, (4, 4, 0))
    if "noisy" in how:
        pixels = np.clip(pixels + np.random.default_rng(0).normal(0, 0.05, pixels.shape), 0, 1)
    return pixels


def right(scene: Scene, found: Description) -> bool:
    axis = 0 if scene.items[0].place in ("left", "right") else 1
    items = sorted(found.items, key=lambda item: item.center[axis])
    return found.background == scene.background and [
        (item.color, item.shape, item.place, said.size and item.size) for item, said in zip(items, scene.items)
    ] == [(said.color, said.shape, said.place, said.size) for said in scene.items]


@pytest.mark.parametrize("how", ["as drawn", "blurred", "noisy", "blurred and noisy", "tilted"])
def test_reads_drawn_images(how: str) -> None:
    wrong = [
        scene for image, scene in zip(drawn().images, drawn().scenes) if not right(scene, describe(change(image, how)))
    ]
    assert not wrong


@pytest.mark.parametrize("size", [96, 512])
def test_other_sizes(size: int) -> None:
    images = drawing.batch(7, 10, size=size)
    assert all(right(scene, describe(image)) for image, scene in zip(images.images, images.scenes))


def test_arrays_and_tensors_read_the_same() -> None:
    image = drawn().images[0]
    tensor = torch.from_numpy(image).movedim(-1, 0)
    expected = describe(image)
    assert describe(tensor) == describe(tensor.float() / 255) == describe((image / 255).astype(np.float32)) == expected


def test_measures() -> None:
    yy, xx = np.mgrid[:SIDE, :SIDE] + 0.5
    image = np.where((np.hypot(xx - 80, yy - 128) < 50)[..., None], [0.9, 0.1, 0.1], [1.0, 1.0, 1.0])
    (item,) = describe(image).items
    assert item.center == pytest.approx((80 / SIDE, 0.5), abs=0.005)
    assert item.radius == pytest.approx(50 / SIDE, abs=0.005)
    assert item.area == pytest.approx(np.pi * 50**2 / SIDE**2, rel=0.03)


def test_nothing_there() -> None:
    assert describe(np.full((64, 64, 3), 0.95)) == Description("white", ())


def test_a_blob_is_no_shape() -> None:
    """A thin bar, a half moon and a letter L have a color and a place but none of the shapes."""
    yy, xx = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    blobs = {
        "bar": (abs(xx) < 12) & (abs(yy) < 60),
        "moon": (np.hypot(xx, yy) < 60) & (np.hypot(xx - 35, yy) > 55),
        "L": ((abs(xx + 40) < 15) & (abs(yy) < 60)) | ((abs(yy - 45) < 15) & (abs(xx) < 55)),
    }
    for name, blob in blobs.items():
        (item,) = describe(np.where(blob[..., None], 0.05, 0.95) * np.ones(3)).items
        assert (item.color, item.shape) == ("black", None), name


def test_noise_is_no_scene() -> None:
    noise = np.random.default_rng(0).random((128, 128, 3))
    assert not any(item.shape for item in describe(noise).items)


def test_every_color_has_its_name() -> None:
    rng = np.random.default_rng(0)
    for color in grammar.COLORS:
        assert {analysis.name(drawing.color_near(color, rng) / 255) for _ in range(50)} == {color}


def test_no_image() -> None:
    with pytest.raises(ValueError, match=r"not \[4, 8\]"):
        describe(np.zeros((4, 8)))


def test_shape_of_every_item_in_a_pair_of_one_color() -> None:
    scene = Scene((Item("blue", "star", place="top"), Item("blue", "square", place="bottom")), "yellow")
    image = drawing.draw(scene, np.random.default_rng(1))
    assert {item.shape for item in describe(image).items} == {"star", "square"}
