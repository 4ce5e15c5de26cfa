"""Images of hearts, a shape that the tiny cascade was not trained on, for a LoRA with the token `[heart]`."""

from __future__ import annotations

import numpy as np

from . import drawing, grammar
from .grammar import Item, Scene

TOKEN = "[heart]"
COUNT = 20


def scene(seed: int, number: int) -> tuple[Scene, str]:
    """Scene and caption number `number` of a seed: every color in turn, size and place as it comes."""
    rng = np.random.default_rng((seed, number))
    color = grammar.COLORS[number % len(grammar.COLORS)]
    background = str(rng.choice([other for other in grammar.COLORS if other != color]))
    item = Item(color, drawing.HEART, str(rng.choice(grammar.SIZES)), str(rng.choice(grammar.PLACES)))
    size, place = (value if rng.random() < 0.5 else None for value in (item.size, item.place))
    return Scene((item,), background), grammar.write(Scene((Item(color, TOKEN, size, place),), background))


def batch(seed: int, n: int, *, start: int = 0, size: int = 256) -> tuple[np.ndarray, list[str]]:
    """Images `start` to `start + n` of a seed as uint8 [n, size, size, 3], and their captions."""
    images, captions = [], []
    for number in range(start, start + n):
        drawn, caption = scene(seed, number)
        images.append(drawing.draw(drawn, np.random.default_rng((seed, number, 1)), size=size))
        captions.append(caption)
    return np.stack(images), captions
