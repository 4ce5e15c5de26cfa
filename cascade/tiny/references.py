"""Image prompts with a caption: an image that is shown, and one that the caption describes together with it.

What the caption leaves out, the color of a shape for example, is as in the image that is shown; what it says may be
otherwise there.
"""

from __future__ import annotations

import numpy as np

from . import drawing, grammar
from .grammar import Item, Scene

PARTIAL, SOME = 0.4, 0.15
"""How often a caption leaves out more than usual, and how often it says nothing of the shapes."""
NO_COLOR, NO_SHAPE, NO_SIZE, NO_PLACE, NO_BACKGROUND = 0.6, 0.4, 0.5, 0.4, 0.6
"""How often each part is left out where the caption is partial."""


def leave_out(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene, which has one item, without some of its parts: the color, the shape, or both among them."""
    (item,) = scene.items
    while True:
        out = rng.random(5) < (NO_COLOR, NO_SHAPE, NO_SIZE, NO_PLACE, NO_BACKGROUND)
        if out[:2].any():
            break
    said = (None if left_out else part for left_out, part in zip(out, (item.color, item.shape, item.size, item.place)))
    return Scene((Item(*said),), None if out[4] else scene.background)


def shown_with(scene: Scene, said: Scene, rng: np.random.Generator) -> Scene:
    """A scene that is as `scene` in what `said` leaves out, and anything in what it says."""
    (item,), (told,) = scene.items, said.items
    kept = Item(*(None if b else a for a, b in zip(_parts(item), _parts(told))))
    return grammar.complete(Scene((kept,), None if said.background else scene.background), rng)


def _parts(item: Item) -> tuple[str | None, ...]:
    return item.color, item.shape, item.size, item.place


def sample(rng: np.random.Generator) -> tuple[Scene, str, Scene]:
    """What is shown, a partial caption, and what they describe together: complete scenes with one item."""
    while True:
        scene = grammar.complete(grammar.sample(rng), rng)
        if len(scene.items) == 1:
            said = leave_out(scene, rng)
            return shown_with(scene, said, rng), grammar.write(said), scene


def batch(seed: int, n: int, *, start: int = 0, size: int = 256) -> tuple[np.ndarray, list[str]]:
    """Images `start` to `start + n` of a seed: the one that is shown and the one to learn beside each other, uint8
    [n, size, 2 size, 3], and the captions. Where the caption is not partial both are the same."""
    images, captions = np.empty((n, size, 2 * size, 3), np.uint8), []
    for i in range(n):
        rng = np.random.default_rng((seed, start + i, 9))
        kind = rng.random()
        if kind < PARTIAL:
            shown, caption, scene = sample(rng)
            both = [drawing.draw(each, rng, size=size) for each in (shown, scene)]
        elif kind < PARTIAL + SOME:
            scene = grammar.complete(Scene(()), rng)
            caption = grammar.write(Scene((), scene.background if rng.random() < 0.8 else None))
            both = [drawing.draw(scene, rng, size=size)] * 2
        else:
            drawn = drawing.batch(seed, 1, start=start + i, size=size)
            caption, both = drawn.captions[0], [drawn.images[0]] * 2
        images[i] = np.concatenate(both, axis=1)
        captions.append(caption)
    return images, captions
