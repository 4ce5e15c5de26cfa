"""The tiny cascade's images as sources of a training. Importing this module registers them.

tiny: shapes with captions of the grammar. tiny_hearts: a shape that the tiny cascade does not have, with a learned
token in the captions. tiny_with_hearts: shapes, and a heart in place of some of them. tiny_flat: broad flat images and
those of the grammar, without captions. tiny_instructions: an image before and after each of many edits in words.
tiny_references: an image that is shown and one that a caption describes together with it. tiny_any_colors: shapes with
captions of the grammar, half of them in other colors than its.
tiny_ip_adapter: an image to be shown and one to be made of it, of another place, many times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..errors import InvalidConfig
from ..training.data import IMAGE_SOURCES, ImageSettings
from . import drawing, flat, hearts, instructions, ip_adapter_images, references

HEART_INTERVAL = 4
"""In `tiny_with_hearts`, images 0, 4, 8, ... show a heart."""

Batch = tuple[np.ndarray, list[str]]


class TinyImages:
    """`count` images and captions from one seed, made when they are read. Raises InvalidConfig without a count."""

    def __init__(self, kind: str, make: Callable[..., Batch], settings: ImageSettings) -> None:
        if settings.count is None:
            raise InvalidConfig(f"images: the source {kind} needs a count")
        self.make, self.count, self.seed, self.size = make, settings.count, settings.seed, settings.size
        self.name = f"{kind}-{self.count}-{self.seed}-{self.size}"

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, count: int) -> Batch:
        return self.make(self.seed, count, start=start, size=self.size)


def _shapes(seed: int, count: int, *, start: int, size: int) -> Batch:
    drawn = drawing.batch(seed, count, start=start, size=size)
    return drawn.images, drawn.captions


def _shapes_and_hearts(seed: int, count: int, *, start: int, size: int) -> Batch:
    images, captions = _shapes(seed, count, start=start, size=size)
    for i in range(-start % HEART_INTERVAL, count, HEART_INTERVAL):
        number = (start + i) // HEART_INTERVAL
        [images[i]], [captions[i]] = hearts.batch(seed, 1, start=number, size=size)
    return images, captions


KINDS: dict[str, Callable[..., Batch]] = {
    "tiny": _shapes,
    "tiny_hearts": hearts.batch,
    "tiny_with_hearts": _shapes_and_hearts,
    "tiny_flat": flat.batch,
    "tiny_instructions": instructions.batch,
    "tiny_references": references.batch,
    "tiny_any_colors": drawing.batch_in_any_colors,
    "tiny_ip_adapter": ip_adapter_images.batch,
}
IMAGE_SOURCES.update({kind: partial(TinyImages, kind, make) for kind, make in KINDS.items()})

EXAMPLES: dict[str, dict[str, Any]] = {
    "hearts": {"source": "tiny_hearts", "count": hearts.COUNT},
    "shapes": {"source": "tiny", "count": 200},
}
"""Images to try a training with: name -> their settings, to which the size is added."""
