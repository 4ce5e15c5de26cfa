"""Edits in words, with an image before and after each: what the tiny cascade's instruct network is trained on.

    make it {color}    make it {size}    turn it into a {shape}    move it to the {place}    make the background {color}

Only what the instruction names is changed: shades, tilt and the distance from the place stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from . import drawing, grammar
from .drawing import RADIUS, Placed
from .grammar import Item, Scene


class Edit(NamedTuple):
    """An instruction, and what an image of one shape shows before and after it; both scenes are complete."""

    instruction: str
    before: Scene
    after: Scene


def _recolored(scene: Scene, item: Item, rng: np.random.Generator) -> Edit:
    color = grammar.choice(rng, grammar.COLORS)
    return Edit(f"make it {color}", scene, replace(scene, items=(replace(item, color=color),)))


def _reshaped(scene: Scene, item: Item, rng: np.random.Generator) -> Edit:
    shape = grammar.choice(rng, grammar.SHAPES)
    return Edit(f"turn it into a {shape}", scene, replace(scene, items=(replace(item, shape=shape),)))


def _on_another(scene: Scene, item: Item, rng: np.random.Generator) -> Edit:
    color = grammar.choice(rng, grammar.COLORS)
    return Edit(f"make the background {color}", scene, replace(scene, background=color))


def _moved(scene: Scene, item: Item, rng: np.random.Generator) -> Edit:
    place = grammar.choice(rng, grammar.PLACES)
    return Edit(f"move it to the {place}", scene, replace(scene, items=(replace(item, place=place),)))


def _resized(scene: Scene, item: Item, rng: np.random.Generator) -> Edit:
    size = grammar.choice(rng, grammar.SIZES)
    return Edit(f"make it {size}", scene, replace(scene, items=(replace(item, size=size),)))


KINDS: Mapping[str, Callable[[Scene, Item, np.random.Generator], Edit]] = {
    "color": _recolored,
    "shape": _reshaped,
    "background": _on_another,
    "place": _moved,
    "size": _resized,
}
"""What an instruction changes -> (scene, its item, rng) -> an edit, which may change nothing."""


def sample(rng: np.random.Generator, kind: str | None = None, *, unseen: bool = False) -> Edit:
    """An edit of a scene with one shape, of this kind or of any.

    unseen: afterwards it has a combination that is kept from training, else neither scene has one.
    """
    while True:
        scene = grammar.complete(grammar.sample(rng), rng)
        change = KINDS[kind or grammar.choice(rng, tuple(KINDS))]
        if len(scene.items) != 1:
            continue
        edit = change(scene, scene.items[0], rng)
        shown = grammar.fits(edit.after, unseen=True)
        if shown and edit.after != scene and grammar.fits(edit.after) is not unseen:
            return edit


def draw(edit: Edit, rng: np.random.Generator, *, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The images before and after an edit, as uint8 [size, size, 3]."""
    (item,), (wanted,) = edit.before.items, edit.after.items
    assert edit.before.background is not None
    assert edit.after.background is not None
    background = drawing.color_near(edit.before.background, rng)
    placed = drawing.place(item, drawing.SIDE, rng)
    after = background
    if edit.after.background != edit.before.background:
        after = drawing.color_near(edit.after.background, rng)
    return (
        drawing.paint(background, [placed], size),
        drawing.paint(after, [_changed(placed, item, wanted, rng)], size),
    )


def _changed(placed: Placed, item: Item, wanted: Item, rng: np.random.Generator) -> Placed:
    (low, high), (new_low, new_high) = RADIUS[item.size], RADIUS[wanted.size]
    away = placed.center - drawing.middle_of(item.place)
    return placed._replace(
        shape=wanted.shape,
        center=drawing.middle_of(wanted.place) + away,
        radius=new_low + (placed.radius - low) / (high - low) * (new_high - new_low),
        color=placed.color if wanted.color == item.color else drawing.color_near(str(wanted.color), rng),
    )


def batch(seed: int, n: int, *, start: int = 0, size: int = 256) -> tuple[np.ndarray, list[str]]:
    """Edits `start` to `start + n` of a seed: before and after beside each other, uint8 [n, size, 2 size, 3], and the
    instructions."""
    images, instructions = np.empty((n, size, 2 * size, 3), np.uint8), []
    for i in range(n):
        rng = np.random.default_rng((seed, start + i, 8))
        edit = sample(rng)
        images[i] = np.concatenate(draw(edit, rng, size=size), axis=1)
        instructions.append(edit.instruction)
    return images, instructions
