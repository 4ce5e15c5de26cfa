"""The drawings: repeatable, and small changes only."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from cascade.tiny import drawing, grammar
from cascade.tiny.grammar import Item, Scene


def test_an_image_depends_on_its_seed_and_number_alone() -> None:
    whole = drawing.batch(3, 12, size=64)
    part = drawing.batch(3, 4, start=5, size=64)
    assert np.array_equal(whole.images[5:9], part.images)
    assert whole.captions[5:9] == part.captions
    assert whole.scenes[5:9] == part.scenes
    assert not np.array_equal(whole.images, drawing.batch(4, 12, size=64).images)


def test_captions_fit_the_images() -> None:
    drawn = drawing.batch(0, 300, size=16)
    read = [grammar.parse(caption) for caption in drawn.captions]
    mentions = [caption for caption, scene in zip(drawn.captions, read) if scene is None]
    assert 5 <= len(mentions) <= 35
    assert all(len(caption.split()) <= 2 for caption in mentions)
    for said, scene in zip(read, drawn.scenes):
        if said is not None:
            assert [(i.color, i.shape) for i in said.items] == [(i.color, i.shape) for i in scene.items]
            assert said.background in (None, scene.background)


def test_colors_stay_apart() -> None:
    """The nearest two colors of the palette keep a distance, however they are changed."""
    rng = np.random.default_rng(0)
    drawn = {name: np.stack([drawing.color_near(name, rng) for _ in range(200)]) / 255 for name in drawing.PALETTE}
    assert drawn["white"].min() >= 0.93
    assert drawn["black"].max() <= 0.07
    for one, other in combinations(drawn.values(), 2):
        assert np.linalg.norm(one[:, None] - other[None], axis=-1).min() > 0.25


@pytest.mark.parametrize("shape", grammar.SHAPES)
@pytest.mark.parametrize("place", grammar.PLACES)
def test_large_shapes_stay_inside_and_edges_are_smooth(shape: str, place: str) -> None:
    scene = Scene((Item("black", shape, "large", place),), "white")
    for seed in range(10):
        image = drawing.draw(scene, np.random.default_rng(seed), size=128)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border == image[0, 0]).all()
        levels = np.unique(image)
        assert len(levels) > 20
        assert image.dtype == np.uint8


def test_area_of_shapes() -> None:
    """By geometry: circle pi r^2, square (2 * 0.886 r)^2, triangle of circumradius 1.15 r, star of ten triangles."""
    radius, side = 50.0, 160
    x = np.arange(side, dtype=np.float32)[None] - side / 2 + 0.5
    expected = {
        "circle": np.pi * radius**2,
        "square": (2 * 0.886 * radius) ** 2,
        "triangle": 0.75 * 3**0.5 * (1.15 * radius) ** 2,
        "star": 5 * 1.15 * radius * 0.47 * radius * np.sin(np.radians(36)),
    }
    for shape, distance in drawing.DISTANCES.items():
        area = np.clip(0.5 - distance(x, x.T, radius), 0, 1).sum()
        assert area == pytest.approx(expected[shape], rel=0.01)


def test_every_second_of_any_colors_is_known_by_its_outline_alone() -> None:
    images, captions = drawing.batch_in_any_colors(6, 12)
    scenes = [grammar.parse(caption) for caption in captions[1::2]]
    assert all(scene and scene.background is None and scene.items[0].color is None for scene in scenes)
    plain = drawing.batch(6, 12)
    assert np.array_equal(images[::2], plain.images[::2])
    assert captions[::2] == plain.captions[::2]
    colors = {tuple(image[0, 0]) for image in images[1::2]}
    assert len(colors) == 6
    again, texts = drawing.batch_in_any_colors(6, 3, start=4)
    assert np.array_equal(again, images[4:7])
    assert texts == captions[4:7]
