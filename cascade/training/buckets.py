"""Images of several shapes: which size each is trained at, and which part of it is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

FACTOR = 32
"""Sides are multiples of it, as the EfficientNet encoder needs them."""

LOOKED_AT = 256
"""Pixels a side in which edges are looked for."""

Crop = Literal["center", "random", "smart"]


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int


class Shown(NamedTuple):
    """The part of an image that is trained on.

    pixels: uint8 [h, w, 3]. enlarged: how much of its size is enlargement, log2 and at least 0. cut: the share of the
    area that is not shown. down, right: how far the part lies from the top and the left, each 0 to 1.
    """

    pixels: np.ndarray
    enlarged: float
    cut: float
    down: float = 0.5
    right: float = 0.5


def ratio(value: str | float) -> float:
    """Width by height: "16/9", "16:9" or a number. Raises ValueError."""
    try:
        found = float(Fraction(value.replace(":", "/").strip())) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{value!r} is no ratio of width to height, such as 2/3") from error
    if not 0.05 <= found <= 20:
        raise ValueError(f"a ratio of {value} is not between 1/20 and 20")
    return found


def bucket_sizes(size: int, ratios: Sequence[float]) -> tuple[Size, ...]:
    """The sizes of about `size` x `size` pixels: one for each ratio and for its inverse, in the reference's order.

    Without ratios the square alone. Two ratios that give the same size share it.
    """
    if not ratios:
        return (Size(size, size),)
    found = list(ratios)
    found += [1 / each for each in ratios if 1 / each not in found]
    area = size * size
    sides = [(math.sqrt(area / each), math.sqrt(area * each)) for each in found]
    return tuple(dict.fromkeys(Size(*(max(FACTOR, int(side // FACTOR) * FACTOR) for side in pair)) for pair in sides))


def closest(original: Size, sizes: Sequence[Size]) -> int:
    """The size whose shape is nearest to that of an image."""
    shape = original.width / original.height
    return int(np.argmin([abs(shape - size.width / size.height) for size in sizes]))


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, on white where it is transparent, as RGB."""
    ImageOps.exif_transpose(image, in_place=True)
    turned = image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return turned.convert("RGB")


def show(image: Image.Image, size: Size, crop: Crop, random: np.random.Generator) -> Shown:
    """Cut the largest part of the shape of `size` out of an RGB image, and resize it.

    `center` takes the middle, `random` any part, `smart` the part with the most edges, moved a little by chance."""
    kept_height = min(image.height, image.width * size.height / size.width)
    kept_width = min(image.width, image.height * size.width / size.height)
    shares = kept_height / image.height, kept_width / image.width
    down, right = _place(image, shares, crop, random)
    fitted = ImageOps.fit(image, (size.width, size.height), Image.Resampling.LANCZOS, centering=(right, down))
    enlarged = math.log2(size.height / (image.height * shares[0]))
    return Shown(np.asarray(fitted), max(0.0, enlarged), 1 - shares[0] * shares[1], down, right)


def show_alike(image: Image.Image, size: Size, shown: Shown, resample: Image.Resampling) -> np.ndarray:
    """uint8 [h, w, ...]: of an image of the same shape as another, the part that is shown of that, at this size."""
    return np.asarray(ImageOps.fit(image, (size.width, size.height), resample, centering=(shown.right, shown.down)))


def _place(
    image: Image.Image, shares: tuple[float, float], crop: Crop, random: np.random.Generator
) -> tuple[float, float]:
    """How far down and to the right the part lies, each 0 to 1."""
    if crop == "center":
        return 0.5, 0.5
    if crop == "random":
        return float(random.random()), float(random.random())
    image = image.convert("L")
    image.thumbnail((LOOKED_AT, LOOKED_AT))
    gray = np.asarray(image, np.float32)
    edges = np.zeros_like(gray)
    edges[:, 1:] += np.abs(np.diff(gray, axis=1))
    edges[1:] += np.abs(np.diff(gray, axis=0))
    moved = 0.05 * random.standard_normal(2)
    down, right = (
        float(np.clip(_busiest(edges.sum(axis=1 - axis), shares[axis]) + moved[axis], 0, 1)) for axis in (0, 1)
    )
    return down, right


def _busiest(edges: np.ndarray, share: float) -> float:
    """Where the part of this length has the most edges, 0 to 1; of equal ones the middle one."""
    length = max(1, round(len(edges) * share))
    room = len(edges) - length
    if room == 0:
        return 0.5
    sums = np.concatenate([[0.0], np.cumsum(edges, dtype=np.float64)])
    parts = sums[length:] - sums[: room + 1]
    places = np.flatnonzero(parts >= parts.max() * (1 - 1e-6))
    return float(places[len(places) // 2]) / room
