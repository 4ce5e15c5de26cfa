"""What is in an image: plain image analysis of shapes on a plain background, no learned judge.

The background is the median of the border. What differs from it falls into connected pieces; a piece has the median
color of its core, and its outline is where the image is half that color and half the background (blurring does not
move this line). The shape is the one whose drawn outline, as distance from the center by angle, fits best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from .drawing import DISTANCES, OUTLINES, PALETTE, SIDE

# Lengths are parts of the image's side, as in drawing.
SMOOTH = 1 / 128  # Against noise, before looking for pieces.
DIFFERENT = 22.0  # CIELAB distance from the background; the nearest two colors of the palette are about 40 apart.
EDGE = 1 / 32  # From a piece's outline as far as its edge is looked for.
SMALLEST = 0.005  # Area of a piece that counts, a quarter of the smallest star.
LARGE = 0.172  # Half the longer side of the box: small ones end at 0.161, large ones start at 0.182.
OFF_CENTER = (0.5 - SIDE) / 2
FIT = 0.2  # Mean distance between two outlines, in mean radii, from which on it is none of the shapes.
ANGLES = 90
TURN = np.radians(30.0)


@dataclass(frozen=True)
class Found:
    """One piece of an image. `shape` is None when it has none of the outlines.

    `center` (x, y) and `radius` (half the longer side of its box) are parts of the side, `area` is part of the image.
    """

    color: str
    shape: str | None
    size: str
    place: str
    center: tuple[float, float]
    radius: float
    area: float


@dataclass(frozen=True)
class Description:
    """What is in an image; the largest item first."""

    background: str
    items: tuple[Found, ...]


def describe(image: Any, shapes: Sequence[str] = tuple(DISTANCES)) -> Description:
    """Look at one image, an array or tensor [H, W, 3] or [3, H, W], uint8 or float in [0, 1].

    shapes: those that an item may have, of `drawing.OUTLINES`.
    """
    seen = _see(image)
    items = [item for piece in seen.pieces for item in _items(seen, piece, shapes)]
    return Description(name(seen.background), tuple(sorted(items, key=lambda item: -item.area)))


def foreground(image: Any) -> np.ndarray:
    """True [H, W] where an image, as in `describe`, is more of an item than of the background."""
    seen = _see(image)
    return np.any([np.zeros(seen.smooth.shape[:2], bool), *(_cover(seen, p)[1] > 0.5 for p in seen.pieces)], axis=0)


def outline_overlap(image: Any, other: Any) -> float:
    """Intersection over union of the foregrounds of two images of one size; 0 where neither has one."""
    one, two = foreground(image), foreground(other)
    return float((one & two).sum() / max(1, (one | two).sum()))


def edge_width(image: Any) -> float | None:
    """Pixels from a tenth to nine tenths of the largest item's color, across its outline; None without an item.

    The area in between, over the outline's length, which is the sum of the gradients of how much is item.
    """
    seen = _see(image)
    if not seen.pieces:
        return None
    piece = max(seen.pieces, key=lambda piece: piece.sum())
    color, _ = _cover(seen, piece)
    axis = (color - seen.background) / np.sum((color - seen.background) ** 2)
    cover = np.clip((_pixels(image) - seen.background) @ axis, 0, 1)
    reach = round(EDGE * len(piece))
    near = ndimage.binary_dilation(piece, iterations=reach) != ndimage.binary_erosion(piece, iterations=reach)
    length = np.hypot(*np.gradient(cover))[near].sum()
    return float(((cover > 0.1) & (cover < 0.9) & near).sum() / length)


def resemblance(image: Any, drawn: np.ndarray) -> float:
    """How much what is in an image overlaps (IoU) with a shape, `drawn` [h, w] above 0.5, at the best angle up to TURN.

    Both are moved and scaled to one center and one area before.
    """
    seen = foreground(image).astype(np.float32)
    if not seen.any():
        return 0.0
    one = _normalized(seen, 0.0)
    others = (_normalized(drawn, angle) for angle in np.linspace(-TURN, TURN, 13))
    return max(float((one & other).sum() / (one | other).sum()) for other in others)


def _normalized(cover: np.ndarray, angle: float, side: int = 96) -> np.ndarray:
    """True [side, side] where a shape is, turned, its centroid in the middle and its area an eighth."""
    rows, columns = np.indices(cover.shape)
    y, x = (rows * cover).sum() / cover.sum(), (columns * cover).sum() / cover.sum()
    scale = np.sqrt(8 * cover.sum()) / side
    v, u = (np.indices((side, side)) - (side - 1) / 2) * scale
    cos, sin = np.cos(angle), np.sin(angle)
    return ndimage.map_coordinates(cover, [y + v * cos + u * sin, x + u * cos - v * sin], order=1) > 0.5


class _Seen(NamedTuple):
    """An image without its noise [H, W, 3], its background [3], the distance from that [H, W], the pieces [H, W]."""

    smooth: np.ndarray
    background: np.ndarray
    different: np.ndarray
    pieces: list[np.ndarray]


def _see(image: Any) -> _Seen:
    pixels = _pixels(image)
    smooth = ndimage.gaussian_filter(pixels, (SMOOTH * len(pixels), SMOOTH * len(pixels), 0))
    edge = max(1, len(pixels) // 64)
    border = np.concatenate(
        [s.reshape(-1, 3) for s in (smooth[:edge], smooth[-edge:], smooth[:, :edge], smooth[:, -edge:])]
    )
    background = np.median(border, axis=0)
    different = np.linalg.norm(_lab(smooth) - _lab(background), axis=-1)
    pieces, sizes = _connected(different > DIFFERENT)
    return _Seen(smooth, background, different, [pieces == i for i in _large(sizes)])


def name(rgb: np.ndarray) -> str:
    """The color of the palette that is nearest to `rgb` [3] in [0, 1]."""
    distances = np.linalg.norm(_palette() - _lab(rgb), axis=-1)
    return list(PALETTE)[int(distances.argmin())]


@lru_cache
def _palette() -> np.ndarray:
    return _lab(np.array(list(PALETTE.values())))


def _pixels(image: Any) -> np.ndarray:
    array = np.asarray(image.detach().float().cpu() if hasattr(image, "detach") else image)
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
        raise ValueError(f"an image is [H, W, 3] or [3, H, W], not {list(array.shape)}")
    if array.shape[-1] != 3:
        array = array.transpose(1, 2, 0)
    is_bytes = getattr(image, "dtype", None) is not None and "uint8" in str(image.dtype)
    return np.clip(array.astype(np.float32) / (255 if is_bytes else 1), 0, 1)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in [0, 1] to CIELAB (D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _connected(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of a mask numbered from 1, and the part of the image that each number (0: none) covers."""
    labelled: Any = ndimage.label(mask)
    return labelled[0], np.bincount(labelled[0].ravel()) / mask.size


def _large(sizes: np.ndarray) -> list[int]:
    return [i for i in range(1, len(sizes)) if sizes[i] >= SMALLEST]


def _cover(seen: _Seen, piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A piece's color, and how much of it is in a pixel [H, W]: 0 background, 1 item; blurring keeps this linear."""
    smooth, background, different = seen.smooth, seen.background, seen.different
    color = np.median(smooth[piece & (different >= np.quantile(different[piece], 0.6))], axis=0)
    axis = (color - background) / np.sum((color - background) ** 2)
    near = ndimage.binary_dilation(piece, iterations=2)
    return color, np.where(near, np.clip((smooth - background) @ axis, 0, 1), 0)


def _items(seen: _Seen, piece: np.ndarray, shapes: Sequence[str]) -> list[Found]:
    """The items in a piece: one, or more when blur made a thin bridge between things of one color."""
    color, cover = _cover(seen, piece)
    parts, sizes = _connected(cover > 0.5)
    boxes, found = ndimage.find_objects(parts), []
    for i in _large(sizes):
        mask = ndimage.binary_dilation(parts == i, iterations=3) if len(sizes) > 2 else 1
        found.append(_item(name(color), boxes[i - 1], cover * mask, shapes))
    return found


def _item(color: str, box: tuple[slice, slice], cover: np.ndarray, shapes: Sequence[str]) -> Found:
    side = len(cover)
    rows, columns = box
    x, y = (columns.start + columns.stop) / 2 / side, (rows.start + rows.stop) / 2 / side
    radius = max(columns.stop - columns.start, rows.stop - rows.start) / 2 / side
    size = "large" if radius > LARGE else "small"
    return Found(color, _shape(cover, shapes), size, _place(x, y), (x, y), radius, float(cover.mean()))


def _place(x: float, y: float) -> str:
    dx, dy = x - 0.5, y - 0.5
    if max(abs(dx), abs(dy)) < OFF_CENTER:
        return "center"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _shape(cover: np.ndarray, shapes: Sequence[str]) -> str | None:
    """The shape whose outline is nearest to that of `cover` [H, W], at any angle; None when none is near."""
    outline = _outline(cover)
    turned = np.stack([np.roll(outline, i) for i in range(ANGLES)])
    drawn = _drawn_outlines()
    misfits = {shape: np.abs(turned - drawn[shape]).mean(axis=1).min() for shape in shapes}
    best = min(misfits, key=lambda shape: misfits[shape])
    return best if misfits[best] < FIT else None


def _outline(cover: np.ndarray) -> np.ndarray:
    """Distance from the centroid to the outline by angle [ANGLES], divided by its mean."""
    rows, columns = np.indices(cover.shape)
    y, x = (rows * cover).sum() / cover.sum(), (columns * cover).sum() / cover.sum()
    reach = np.arange(0, 0.5 * max(cover.shape), 0.5)[:, None]
    angles = np.arange(ANGLES) * 2 * np.pi / ANGLES
    rays = ndimage.map_coordinates(cover, [y + reach * np.sin(angles), x + reach * np.cos(angles)], order=1)
    distances = rays.sum(axis=0)  # Of a shape that every ray leaves once.
    return distances / distances.mean()


@lru_cache
def _drawn_outlines() -> dict[str, np.ndarray]:
    radius, side = 60.0, 256
    x = np.arange(side, dtype=np.float32)[None, :] - side / 2
    y = x.T
    return {shape: _outline(np.clip(0.5 - far(x, y, radius), 0, 1)) for shape, far in OUTLINES.items()}
