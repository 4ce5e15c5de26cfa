"""Draws broad flat images: one to five objects of many kinds, fills and colors.

They are to the tiny cascade's decoder what photos are to the released one: Stage A, the encoder, the previewer and
Stage B are to be trained on them, beside the grammar's own images.

An object is one polygon or several, each added to the object or cut out of it, or a character of Pillow's own font.
The kinds of HELD_OUT are never in training images; the scores use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import drawing

GRAMMAR = 0.35
"""Part of the training images that are the grammar's own."""

SCALE = 4  # A mask is drawn at this multiple of its size and shrunk, which makes its edges smooth.
COUNTS, COUNT_SHARES = (1, 2, 3, 4, 5), (0.45, 0.25, 0.12, 0.1, 0.08)
PLAIN, PLAIN_BACKGROUND = 0.75, 0.8  # Parts of the objects and of the backgrounds that have one color.
CONTRAST, PLAIN_CONTRAST = 0.3, 0.5  # The least distances in RGB, each in [0, 1], in training images and in the others.
TEXT_TILT = np.radians(20.0)

Polygon = np.ndarray
"""Corners [n, 2] as (x, y) around the origin, within about 1 of it; y grows downwards."""
Parts = list[tuple[Polygon, bool]]
"""Polygons in the order in which they are drawn, and whether each is added or cut out."""


def batch(seed: int, n: int, *, start: int = 0, size: int = 256) -> tuple[np.ndarray, list[str]]:
    """Training images `start` to `start + n` of a seed as uint8 [n, size, size, 3], without captions.

    An image depends on the seed and its number alone.
    """
    images = np.empty((n, size, size, 3), np.uint8)
    for i in range(n):
        rng = np.random.default_rng((seed, start + i, 2))
        if rng.random() < GRAMMAR:
            images[i] = drawing.batch(seed, 1, start=start + i, size=size).images[0]
        else:
            images[i] = draw(rng, size=size)
    return images, [""] * n


def draw(rng: np.random.Generator, *, size: int = 256) -> np.ndarray:
    """A random image of the training kinds, uint8 [size, size, 3]. Of two objects neither overlaps the other."""
    count = int(rng.choice(COUNTS, p=COUNT_SHARES))
    first = color(rng)
    image = _fill(rng, first, PLAIN_BACKGROUND, size)
    taken = np.zeros((size, size), np.float32)
    for _ in range(count):
        seen = _object(rng, str(rng.choice(list(TRAINED))), count, size)
        if count == 2 and (seen * taken).any():
            continue
        taken = np.maximum(taken, seen)
        paint(image, seen, _fill(rng, color(rng, first), PLAIN, size))
    return to_bytes(image)


def draw_held_out(kind: str, rng: np.random.Generator, *, size: int = 256) -> np.ndarray:
    """An image of a kind that is not in training, plain on a plain background, uint8 [size, size, 3]."""
    background = color(rng)
    image = np.tile(background, (size, size, 1))
    front = color(rng, background, contrast=PLAIN_CONTRAST)
    if kind == OVERLAPPING:
        for seen in _overlapping(rng, size):
            paint(image, seen, front)
            front = color(rng, background, front, contrast=PLAIN_CONTRAST)
    else:
        radius = rng.uniform(0.2, 0.32)
        x, y = rng.uniform(radius + 0.03, 0.97 - radius, 2)
        paint(image, mask(HELD_OUT[kind], rng, x, y, radius, size), front)
    return to_bytes(image)


def color(rng: np.random.Generator, *others: np.ndarray, contrast: float = CONTRAST) -> np.ndarray:
    """A random color that differs from the others, float32 [3] in [0, 1]: half of them near one of the palette."""
    while True:
        rgb = rng.uniform(0, 1, 3)
        if rng.random() < 0.5:
            rgb = np.array(list(drawing.PALETTE.values())[int(rng.integers(len(drawing.PALETTE)))])
            rgb = np.clip(rgb + rng.uniform(-1, 1, 3) * drawing.HUE, 0, 1)
        if all(np.linalg.norm(rgb - other) >= contrast for other in others):
            return rgb.astype(np.float32)


def mask(
    kind: Callable[[np.random.Generator], Parts | str],
    rng: np.random.Generator,
    x: float,
    y: float,
    radius: float,
    size: int,
) -> np.ndarray:
    """As `cover`, for an object of a kind at a random angle."""
    shape = kind(rng)
    if isinstance(shape, str):
        bold, tilt = rng.uniform(0.02, 0.08), rng.uniform(-TEXT_TILT, TEXT_TILT)
        return cover(shape, x, y, radius, size, angle=-tilt, bold=bold)
    return cover(shape, x, y, radius, size, angle=rng.uniform(0, 2 * np.pi))


def cover(
    shape: Parts | str, x: float, y: float, radius: float, size: int, *, angle: float = 0.0, bold: float = 0.05
) -> np.ndarray:
    """How much of an object is in each pixel, float32 [size, size] in [0, 1]; lengths are parts of the side.

    angle: clockwise. bold: how much wider a character's lines are on each side, as a part of the radius.
    """
    side = size * SCALE
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    if isinstance(shape, str):
        font, width = _font(round(2 * radius * side)), int(radius * side * bold)
        pen.text((x * side, y * side), shape, fill=255, font=font, anchor="mm", stroke_width=width)
        canvas = canvas.rotate(-np.degrees(angle), Image.Resampling.BILINEAR, center=(x * side, y * side))
    else:
        cos, sin = np.cos(angle), np.sin(angle)
        for corners, added in shape:
            turned = corners @ np.array([[cos, sin], [-sin, cos]])
            placed = side * (np.array([x, y]) + radius * turned)
            pen.polygon([tuple(corner) for corner in placed], fill=255 if added else 0)
    return np.asarray(canvas.reduce(SCALE), np.float32) / 255


def _object(rng: np.random.Generator, kind: str, count: int, size: int) -> np.ndarray:
    """One object of a training image; the more there are, the smaller they are."""
    radius = rng.uniform(0.12, 0.36) if count == 1 else rng.uniform(0.1, 0.28 if count < 4 else 0.2)
    x, y = rng.uniform(0.7 * radius, 1 - 0.7 * radius, 2)
    return mask(TRAINED[kind], rng, x, y, radius, size)


def _overlapping(rng: np.random.Generator, size: int) -> list[np.ndarray]:
    """Two objects, of which the second covers 10 to 60 % of the first and not the whole middle of it."""
    while True:
        radii = rng.uniform(0.16, 0.26, 2)
        kinds = [str(kind) for kind in rng.choice(["ellipse", "polygon", "regular", "blob"], 2)]
        centers = rng.uniform(0.28, 0.72, (2, 2))
        covers = [mask(TRAINED[k], rng, x, y, r, size) for k, (x, y), r in zip(kinds, centers, radii, strict=True)]
        if 0.1 < float((covers[0] * covers[1]).sum() / covers[0].sum()) < 0.6:
            return covers


def paint(image: np.ndarray, seen: np.ndarray, fill: np.ndarray) -> None:
    """Paint an object into an image [h, w, 3]: `seen` [h, w] as of `cover`, `fill` a color or an image of them."""
    image += seen[:, :, None] * (fill - image)


def _fill(rng: np.random.Generator, rgb: np.ndarray, plain: float, size: int) -> np.ndarray:
    """[size, size, 3] of one color or, where not `plain`, with a second: as a gradient, in stripes, or in dots."""
    if rng.random() < plain:
        return np.tile(rgb, (size, size, 1))
    second = color(rng, rgb)
    angle, period = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.12, 0.3)
    rows, columns = np.mgrid[:size, :size] - size / 2
    along, across = (
        columns * np.cos(angle) + rows * np.sin(angle),
        rows * np.cos(angle) - columns * np.sin(angle),
    )
    kind = rng.choice(["gradient", "stripes", "dots"], p=[0.5, 0.3, 0.2])
    if kind == "gradient":
        share = np.clip(along / (size * rng.uniform(0.6, 1.4)) + 0.5, 0, 1)
    else:
        # Distances in pixels from the middle of a stripe or a dot, and from there to its edge.
        near = [np.abs((v + rng.uniform(0, period)) % period - period / 2) for v in (along, across)]
        distance = near[0] if kind == "stripes" else np.hypot(*near)
        share = np.clip(period * rng.uniform(0.18, 0.32) - distance + 0.5, 0, 1)
    return (rgb + share[:, :, None] * (second - rgb)).astype(np.float32)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as uint8."""
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


@lru_cache
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(pixels)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


# Shapes with random proportions.


def arc(width: float, height: float, start: float = 0.0, stop: float = 2 * np.pi, count: int = 72) -> Polygon:
    """Corners on an ellipse, from one angle to another."""
    angles = np.linspace(start, stop, count)
    return np.stack([width * np.cos(angles), height * np.sin(angles)], axis=1)


def _radial(radii: np.ndarray, angles: np.ndarray) -> Polygon:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _ellipse(rng: np.random.Generator) -> Parts:
    return [(arc(1.0, rng.uniform(0.5, 1.0)), True)]


def _polygon(rng: np.random.Generator) -> Parts:
    count = int(rng.integers(3, 10))
    angles = (np.arange(count) + rng.uniform(-0.35, 0.35, count)) * 2 * np.pi / count
    return [(_radial(rng.uniform(0.35, 1.0, count), angles), True)]


def _regular(rng: np.random.Generator) -> Parts:
    """A regular polygon, or a star where the corners between are drawn in."""
    count = int(rng.integers(3, 8))
    angles = np.arange(2 * count) * np.pi / count
    between = np.cos(np.pi / count) * (rng.uniform(0.4, 0.9) if rng.random() < 0.6 else 1.0)
    return [(_radial(np.where(np.arange(2 * count) % 2, between, 1.0), angles), True)]


def _rectangle(rng: np.random.Generator) -> Parts:
    """With corners that may be round."""
    half = np.array([1.0, rng.uniform(0.25, 1.0)]) * 0.8
    rounding = rng.choice([0.0, rng.uniform(0.2, 1.0)]) * half.min()
    quarter = [arc(rounding, rounding, k * np.pi / 2, (k + 1) * np.pi / 2, 12) for k in range(4)]
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    return [(np.concatenate([signs[k] * (half - rounding) + quarter[k] for k in range(4)]), True)]


def _blob(rng: np.random.Generator) -> Parts:
    """A smooth closed curve."""
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = [rng.uniform(-0.4, 0.4) / k**0.7 * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4, 5)]
    radii = np.exp(np.sum(waves, axis=0))
    return [(_radial(radii / radii.max(), angles), True)]


def _stroke(rng: np.random.Generator) -> Parts:
    """A bent line with round ends."""
    t = np.linspace(0, 1, 30)[:, None]
    a, b, c, d = rng.uniform(-0.85, 0.85, (4, 2))
    a, d = np.array([-0.85, rng.uniform(-0.6, 0.6)]), np.array([0.85, rng.uniform(-0.6, 0.6)])
    points = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
    return _line(points, rng.uniform(0.1, 0.22))


def _line(points: np.ndarray, half: float) -> Parts:
    parts: Parts = [(point + arc(half, half, count=24), True) for point in points]
    for start, stop in pairwise(points):
        along = (stop - start) / max(1e-6, float(np.linalg.norm(stop - start)))
        side = half * np.array([-along[1], along[0]])
        parts.append((np.array([start + side, stop + side, stop - side, start - side]), True))
    return parts


def _zigzag(rng: np.random.Generator) -> Parts:
    count = int(rng.integers(3, 6))
    points = np.stack([np.linspace(-0.85, 0.85, count), rng.uniform(-0.7, 0.7, count)], axis=1)
    return _line(points, rng.uniform(0.1, 0.2))


def _cross(rng: np.random.Generator) -> Parts:
    """Two bars, at right angles or not, that meet in the middle or not."""
    width, other = rng.uniform(0.12, 0.35, 2)
    turn, moved = rng.uniform(0.7, np.pi / 2), rng.uniform(-0.5, 0.5)
    bar = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    cos, sin = np.cos(turn), np.sin(turn)
    second = (bar * [rng.uniform(0.6, 1.0), other]) @ np.array([[cos, sin], [-sin, cos]])
    return [(bar * [1.0, width], True), (second + [moved, 0], True)]


def _hollow(rng: np.random.Generator) -> Parts:
    """A polygon or a closed curve of which the inside is cut out."""
    [(outer, _)] = (_regular, _polygon, _rectangle, _blob)[int(rng.integers(4))](rng)
    return [(outer, True), (outer * rng.uniform(0.4, 0.75), False)]


def _bitten(rng: np.random.Generator) -> Parts:
    """A shape with a part of another cut out of its side. Not one ellipse from another: that may be a crescent."""
    first, second = (
        (_ellipse, _regular),
        (_rectangle, _ellipse),
        (_blob, _ellipse),
        (_polygon, _blob),
        (_blob, _regular),
    )[int(rng.integers(5))]
    [(body, _)], [(bite, _)] = first(rng), second(rng)
    angle = rng.uniform(0, 2 * np.pi)
    away = rng.uniform(0.6, 1.1) * np.array([np.cos(angle), np.sin(angle)])
    return [(body, True), (rng.uniform(0.4, 0.9) * bite + away, False)]


def _joined(rng: np.random.Generator) -> Parts:
    """Two or three shapes as one."""
    parts: Parts = []
    for _ in range(int(rng.integers(2, 4))):
        [(shape, _)] = (_ellipse, _ellipse, _regular, _rectangle, _blob)[int(rng.integers(5))](rng)
        parts.append((rng.uniform(0.3, 0.6) * shape + rng.uniform(-0.4, 0.4, 2), True))
    return parts


def _digit(rng: np.random.Generator) -> str:
    return str(rng.integers(10))


def _sector(rng: np.random.Generator) -> Parts:
    """A piece of a circle: to its center, or cut off straight."""
    edge = arc(1.0, 1.0, 0.0, rng.uniform(0.5, 1.8) * np.pi)
    return [(np.concatenate([edge, [[0.0, 0.0]]]) if rng.random() < 0.6 else edge, True)]


def _crescent(rng: np.random.Generator) -> Parts:
    inner = rng.uniform(0.75, 0.95)
    return [(arc(1.0, 1.0), True), (arc(inner, inner) + [1.0 - inner + rng.uniform(0.3, 0.5), 0.0], False)]


def _ring(rng: np.random.Generator) -> Parts:
    inner = rng.uniform(0.45, 0.7)
    return [(arc(1.0, 1.0), True), (arc(inner, inner), False)]


def _arrow(rng: np.random.Generator) -> Parts:
    neck, shaft, head = rng.uniform(-0.1, 0.3), rng.uniform(0.15, 0.28), rng.uniform(0.55, 0.8)
    upper = np.array([[1.0, 0.0], [neck, -head], [neck, -shaft], [-1.0, -shaft]])
    return [(np.concatenate([upper, upper[:0:-1] * [1, -1]]), True)]


def _letter(rng: np.random.Generator) -> str:
    return str(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ")))


TRAINED: Mapping[str, Callable[[np.random.Generator], Parts | str]] = {
    "ellipse": _ellipse,
    "polygon": _polygon,
    "regular": _regular,
    "rectangle": _rectangle,
    "blob": _blob,
    "stroke": _stroke,
    "zigzag": _zigzag,
    "cross": _cross,
    "hollow": _hollow,
    "bitten": _bitten,
    "joined": _joined,
    "digit": _digit,
    "sector": _sector,
}
"""The kinds of objects in training images."""

OVERLAPPING = "two overlapping"
HELD_OUT: Mapping[str, Callable[[np.random.Generator], Parts | str]] = {
    "crescent": _crescent,
    "ring": _ring,
    "arrow": _arrow,
    "letter": _letter,
}
HELD_OUT_KINDS = (*HELD_OUT, OVERLAPPING)
"""What `draw_held_out` draws."""
