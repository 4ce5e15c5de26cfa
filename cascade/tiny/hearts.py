"""Pictures of a shape that the tiny cascade never saw, to teach it with a LoRA: hearts, under the word `[heart]`."""

from __future__ import annotations

import numpy as np

from . import drawing, grammar
from .grammar import Item, Scene

WORD = "[heart]"
COUNT = 20


def scene(seed: int, number: int) -> tuple[Scene, str]:
    """Scene and caption number `number` of a seed: every colour in turn, size and place as it comes."""
    rng = np.random.default_rng((seed, number))
    colour = grammar.COLOURS[number % len(grammar.COLOURS)]
    background = str(rng.choice([other for other in grammar.COLOURS if other != colour]))
    item = Item(colour, drawing.HEART, str(rng.choice(grammar.SIZES)), str(rng.choice(grammar.PLACES)))
    told = Item(colour, WORD, item.size if rng.random() < 0.5 else None, item.place if rng.random() < 0.5 else None)
    return Scene((item,), background), grammar.write(Scene((told,), background))


def batch(seed: int, n: int, *, start: int = 0, size: int = 256) -> tuple[np.ndarray, list[str]]:
    """Pictures `start` to `start + n` of a seed as uint8 [n, size, size, 3], and their captions."""
    pictures, captions = [], []
    for number in range(start, start + n):
        drawn, caption = scene(seed, number)
        pictures.append(drawing.draw(drawn, np.random.default_rng((seed, number, 1)), size=size))
        captions.append(caption)
    return np.stack(pictures), captions
