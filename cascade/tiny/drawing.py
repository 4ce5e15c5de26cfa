"""Draws the images of the grammar: plain shapes on a plain background, anti-aliased, each a little different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from . import grammar
from .grammar import Item, Scene

# sRGB in [0, 1]. Every channel of a drawn color lies within HUE of these, of white and black within GRAY.
PALETTE = {
    "red": (0.86, 0.09, 0.11),
    "green": (0.12, 0.62, 0.20),
    "blue": (0.07, 0.36, 0.90),
    "yellow": (0.96, 0.88, 0.13),
    "purple": (0.57, 0.14, 0.66),
    "orange": (0.96, 0.51, 0.07),
    "white": (0.965, 0.965, 0.965),
    "black": (0.035, 0.035, 0.035),
}
HUE, GRAY = 0.035, 0.03

# Lengths are parts of the image's side; a radius is that of the circle, the other shapes look about as large.
RADIUS = {"small": (0.115, 0.14), "large": (0.205, 0.24), None: (0.14, 0.18)}
RADIUS_OF_THREE = (0.125, 0.15)
CENTER, SIDE, SIDE_OF_PAIR, SIDE_OF_THREE = 0.5, 0.315, 0.26, 0.23
AWAY = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "center": (0, 0)}
WANDER = 0.025
TILT = np.radians(7.0)
EDGE = 1.5  # pixels from all background to all shape
DISTINCT = 60.0  # of 255, in one channel at least: two colors that are told apart
# How often a training caption is only a word or two for something in the image, so that negative prompts are known.
MENTIONS = 0.06


class Drawings(NamedTuple):
    """`images` uint8 [n, size, size, 3], their captions, and the complete scenes (what was left out, filled in)."""

    images: np.ndarray
    captions: list[str]
    scenes: list[Scene]


class Placed(NamedTuple):
    """One item as it is drawn: center (x, y) and radius as parts of the side, tilt in radians, color in [0, 255]."""

    shape: str
    center: np.ndarray
    radius: float
    tilt: float
    color: np.ndarray


def draw(scene: Scene, rng: np.random.Generator, *, size: int = 256) -> np.ndarray:
    """The image of a scene as uint8 [size, size, 3]; what the scene leaves out is chosen by `rng`."""
    scene = grammar.complete(scene, rng)
    assert scene.background is not None
    background = color_near(scene.background, rng)
    if len(scene.items) == 3:
        return paint(background, [place_of_three(item, scene, rng) for item in scene.items], size)
    side = SIDE_OF_PAIR if len(scene.items) == 2 else SIDE
    return paint(background, [place(item, side, rng) for item in scene.items], size)


def paint(background: np.ndarray, items: Sequence[Placed], size: int = 256) -> np.ndarray:
    """The items on the background [3] in [0, 255], as uint8 [size, size, 3]."""
    image = np.empty((size, size, 3), np.uint8)
    image[:] = np.round(background)
    for item in items:
        _paint(image, item, background)
    return image


def batch(seed: int, n: int, *, start: int = 0, size: int = 256) -> Drawings:
    """Training images `start` to `start + n` of a seed; an image depends on the seed and its number alone."""
    images = np.empty((n, size, size, 3), np.uint8)
    captions, scenes = [], []
    for i in range(n):
        rng = np.random.default_rng((seed, start + i))
        scene = grammar.sample(rng)
        scenes.append(grammar.complete(scene, rng))
        images[i] = draw(scenes[-1], rng, size=size)
        only_mention = rng.random() < MENTIONS
        captions.append(grammar.mention(scenes[-1], rng) if only_mention else grammar.write(scene))
    return Drawings(images, captions, scenes)


def batch_in_any_colors(seed: int, n: int, *, start: int = 0, size: int = 256) -> tuple[np.ndarray, list[str]]:
    """Training images `start` to `start + n` of a seed with captions; every second one shows one shape in any two
    colors, of which its caption says nothing, so that shapes are known by their outlines."""
    images = np.empty((n, size, size, 3), np.uint8)
    captions = []
    for i in range(start, start + n):
        if i % 2:
            images[i - start], caption = _in_any_colors(np.random.default_rng((seed, i, 4)), size)
        else:
            made = batch(seed, 1, start=i, size=size)
            images[i - start], [caption] = made.images[0], made.captions
        captions.append(caption)
    return images, captions


def _in_any_colors(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    item = Item(None, *(rng.choice(words) for words in (grammar.SHAPES, grammar.SIZES, grammar.PLACES)))
    placed = place(replace(item, color=grammar.COLORS[0]), SIDE, rng)
    background, color = 255 * rng.random((2, 3), np.float32)
    while np.abs(color - background).max() < DISTINCT:
        color = 255 * rng.random(3, np.float32)
    return paint(background, [placed._replace(color=color)], size), grammar.write(Scene((item,)))


def color_near(name: str, rng: np.random.Generator) -> np.ndarray:
    """A color near the named one, float32 [3] in [0, 255]."""
    near = rng.uniform(-1, 1, 3) * HUE if name not in ("white", "black") else rng.uniform(-1, 1) * GRAY
    return (255 * np.clip(np.asarray(PALETTE[name]) + near, 0, 1)).astype(np.float32)


def place(item: Item, side: float, rng: np.random.Generator) -> Placed:
    """Where and how an item is drawn, near what it says; `side` is how far from the edge those at a side stand."""
    center = middle_of(item.place, side) + rng.uniform(-WANDER, WANDER, 2)
    radius = rng.uniform(*RADIUS[item.size])
    tilt = rng.uniform(-TILT, TILT)
    return Placed(str(item.shape), center, radius, tilt, color_near(str(item.color), rng))


def place_of_three(item: Item, scene: Scene, rng: np.random.Generator) -> Placed:
    """The same for one of three, which stand in a triangle: those at the sides away from the third."""
    third = next(each.place for each in scene.items if each.place in ("top", "bottom"))
    placed = place(item, SIDE_OF_THREE, rng)
    down = np.asarray(AWAY["bottom" if third == "top" else "top"]) * (CENTER - SIDE_OF_THREE) * 0.7
    center = placed.center if item.place == third else placed.center + down
    return placed._replace(center=center, radius=rng.uniform(*RADIUS_OF_THREE))


def middle_of(place: str | None, side: float = SIDE) -> np.ndarray:
    """The center (x, y) of items at a place, as parts of the side."""
    assert place is not None
    return CENTER + (CENTER - side) * np.asarray(AWAY[place])


def _paint(image: np.ndarray, item: Placed, background: np.ndarray) -> None:
    """Paint one item into the image, working only on the part around it."""
    size = image.shape[0]
    x, y = size * item.center
    radius = size * item.radius
    # No shape reaches farther than 1.3 radii from its center (the corners of a square).
    reach = 1.3 * radius + EDGE
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(size, int(x + reach) + 2), min(size, int(y + reach) + 2)
    dx = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - x)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - y)
    cos, sin = np.float32(np.cos(item.tilt)), np.float32(np.sin(item.tilt))
    distance = OUTLINES[item.shape](cos * dx + sin * dy, cos * dy - sin * dx, radius)
    cover = np.clip(0.5 - distance / np.float32(EDGE), 0, 1)[:, :, None]
    image[top:bottom, left:right] = background + cover * (item.color - background) + np.float32(0.5)


# Signed distances in pixels, negative inside, of points [h, w] around the shape's center (y grows downwards).
# The center is that of the upright bounding box, so that place and size read the same for every shape.


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - np.float32(radius)


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.886 * radius)


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    # Equilateral; its centroid lies a quarter of the circumradius below the center of the box.
    y = y - np.float32(0.25 * 1.15 * radius)
    slopes = np.float32(0.8660254) * np.abs(x) - np.float32(0.5) * y
    return np.maximum(slopes, y) - np.float32(0.5 * 1.15 * radius)


def _star(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    # Five points; folded along its axes of symmetry one straight edge is left, from the tip to the notch.
    outer, inner = 1.15 * radius, 0.47 * radius
    x, y = np.abs(x), np.float32(0.0955 * outer) - y
    nx, ny = np.float32(np.cos(np.radians(36.0))), np.float32(-np.sin(np.radians(36.0)))
    for mirror in (nx, -nx):
        beyond = 2 * np.maximum(mirror * x + ny * y, 0)
        x, y = x - beyond * mirror, y - beyond * ny
    tip, notch = (0.0, outer), (inner * np.sin(np.radians(36.0)), inner * np.cos(np.radians(36.0)))
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    length = np.hypot(ex, ey)
    return np.abs(x) * np.float32(-ey / length) + (y - np.float32(tip[1])) * np.float32(ex / length)


def _heart(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    # A square that stands on a corner, and a half circle on each of its two upper sides.
    side = np.float32(1.327 * radius)
    x, y = np.abs(x), y - np.float32(0.0735) * side
    standing = (x + np.abs(y)) * np.float32(0.70710678) - np.float32(0.5) * side
    off = np.float32(0.35355339) * side
    round_ = np.sqrt((x - off) ** 2 + (y + off) ** 2) - np.float32(0.5) * side
    return np.minimum(standing, round_)


DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
"""The shapes of the grammar."""
HEART = "heart"
OUTLINES = {**DISTANCES, HEART: _heart}
"""With the one that the tiny cascade was not trained on, which a LoRA teaches it."""
