"""Images that are shown and images to be made of them: what the tiny cascade's IP-Adapter is trained on.

Shape, size and colors of both are the same, the place is another. The caption is that of the image to be made; without
what the other one shows it is `a shape, {place}`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from . import drawing, grammar
from .grammar import Item, Scene

SHOWN_AS = "a shape"
"""In captions of the wanted image in place of what the other one shows."""


class Shown(NamedTuple):
    """What an image that is shown has, and one that follows it and the prompt; the scenes are complete."""

    image: Scene
    wanted: Scene

    @property
    def prompt(self) -> str:
        return f"{SHOWN_AS}, {self.wanted.items[0].place}"


def sample(rng: np.random.Generator, *, unseen: bool = False) -> Shown:
    """unseen: of a combination of colors and shape that is kept from training."""
    while True:
        if unseen:
            color, shape, background = grammar.choice(rng, grammar.held_out_combinations())
            scene = grammar.complete(Scene((Item(color, shape),), background), rng)
        else:
            scene = grammar.complete(grammar.sample(rng), rng)
        if len(scene.items) == 1:
            break
    [item] = scene.items
    place = grammar.choice(rng, tuple(place for place in grammar.PLACES if place != item.place))
    return Shown(scene, replace(scene, items=(replace(item, place=place),)))


def draw(shown: Shown, rng: np.random.Generator, *, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The image that is shown, and one that is wanted, of the same shades, as uint8 [size, size, 3]."""
    [item], [wanted] = shown.image.items, shown.wanted.items
    assert shown.image.background is not None
    background = drawing.color_near(shown.image.background, rng)
    first = drawing.place(item, drawing.SIDE, rng)
    second = drawing.place(wanted, drawing.SIDE, rng)._replace(color=first.color, radius=first.radius)
    return drawing.paint(background, [first], size), drawing.paint(background, [second], size)


def batch(seed: int, n: int, *, start: int = 0, size: int = 256) -> tuple[np.ndarray, list[str]]:
    """Pairs `start` to `start + n` of a seed: shown and wanted beside each other, uint8 [n, size, 2 size, 3], and the
    captions."""
    images, captions = np.empty((n, size, 2 * size, 3), np.uint8), []
    for i in range(n):
        rng = np.random.default_rng((seed, start + i, 12))
        shown = sample(rng)
        images[i] = np.concatenate(draw(shown, rng, size=size), axis=1)
        captions.append(grammar.write(shown.wanted))
    return images, captions
