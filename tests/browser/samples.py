"""The images that the templates start from: `python -m tests.browser.samples` draws web/samples again."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from cascade.tiny import grammar
from cascade.tiny.analysis import foreground
from cascade.tiny.drawing import draw
from tests.nodes.workflows import SAMPLES

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Sample:
    """A drawn scene. `painted` is an ellipse that is transparent, as the mask editor leaves it: Load Image's mask.

    penciled: only its outlines, in black on white.
    """

    caption: str
    size: int = 256
    crop: Box | None = None
    painted: Box | None = None
    penciled: bool = False

    def image(self) -> Image.Image:
        scene = grammar.parse(self.caption)
        assert scene is not None, self.caption
        image = Image.fromarray(draw(scene, np.random.default_rng(1), size=self.size))
        if self.penciled:
            image = outlines(image)
        if self.crop:
            image = image.crop(self.crop)
        if self.painted:
            alpha = Image.new("L", image.size, 255)
            ImageDraw.Draw(alpha).ellipse(self.painted, fill=0)
            image.putalpha(alpha)
        return image


def outlines(image: Image.Image) -> Image.Image:
    """Black lines on white where the colors of an image change."""
    inside = foreground(np.asarray(image))
    line = ndimage.binary_dilation(inside, iterations=1) & ~ndimage.binary_erosion(inside, iterations=2)
    return Image.fromarray(np.where(line, 0, 255).astype(np.uint8)).convert("RGB")


DRAWN = {
    "square": Sample("a large red square on a blue background, center"),
    "square_masked": Sample("a large red square on a blue background, center", painted=(40, 40, 216, 216)),
    "circle": Sample("a large green circle on a yellow background, center"),
    "star": Sample("a large red star on a blue background, center"),
    "room_for_more": Sample("a small white square on a green background, left", painted=(128, 56, 248, 200)),
    "large_masked": Sample("a small white square on a green background, left", size=512, painted=(320, 160, 464, 320)),
    "narrow": Sample("a small red star on a yellow background, left", crop=(0, 0, 176, 256)),
    "drawing": Sample("a large red star on a blue background, center", penciled=True),
    "small": Sample("a large purple square on a white background, center", size=128),
}


def main() -> int:
    SAMPLES.mkdir(exist_ok=True)
    for name, sample in DRAWN.items():
        sample.image().save(SAMPLES / f"stable_cascade_{name}.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
