"""The captions that the tiny cascade understands: write them, read them, sample them.

    a {size} {color} {shape} on a {color} background, {place}
    a {color} {shape} on the left and a {color} {shape} on the right, {color} background
    shapes on a {color} background

Size, place, background and the color of a single shape may be left out (then any), and "shape" is any of the shapes.
Two shapes may also stand at the top and at the bottom; "shapes" are two or three.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np

T = TypeVar("T")

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star")
ANY = "shape"
SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom", "center")
PAIRS = (("left", "right"), ("top", "bottom"))
SEVERAL = (*PAIRS, ("left", "right", "top"), ("left", "right", "bottom"))
"""Where `shapes` stand."""

# How often `sample` draws two shapes, and how often it leaves a part of a one-shape caption out.
TWO_SHAPES, NO_SIZE, NO_PLACE, NO_BACKGROUND = 0.4, 0.25, 0.25, 0.15

FORM = "a {size} {color} {shape} on a {color} background, {place}"
FORM_OF_TWO = "a {color} {shape} on the left and a {color} {shape} on the right, {color} background"


@dataclass(frozen=True)
class Item:
    """One shape. None: the caption does not say. Of several shapes the size is always None."""

    color: str | None
    shape: str | None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a caption says: one item, two that stand left and right or top and bottom, or some (no items); and the
    background. A complete one may have three items."""

    items: tuple[Item, ...]
    background: str | None = None


def write(scene: Scene) -> str:
    """The caption of a scene; the inverse of `parse`."""
    if not scene.items:
        return f"{ANY}s" + (f" on {_article(scene.background)} background" if scene.background else "")
    if len(scene.items) == 2:
        sides = [f"{_article(str(item.color))} {item.shape} on the {item.place}" for item in scene.items]
        return " and ".join(sides) + (f", {scene.background} background" if scene.background else "")
    (item,) = scene.items
    words = " ".join(word for word in (item.size, item.color, item.shape or ANY) if word)
    on = f" on {_article(scene.background)} background" if scene.background else ""
    return _article(words) + on + (f", {item.place}" if item.place else "")


def mention(scene: Scene, rng: np.random.Generator) -> str:
    """A word or two for something in the scene, as negative prompts say it: a color, a shape, or both."""
    item = choice(rng, scene.items)
    words = [str(item.color), str(item.shape), f"{item.color} {item.shape}"]
    return choice(rng, (*words, scene.background) if scene.background else tuple(words))


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _any(words: tuple[str, ...], name: str) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


_ONE = re.compile(
    rf"an? ({_any(SIZES, 'size')} )?({_any(COLORS, 'color')} )?{_any((*SHAPES, ANY), 'shape')}"
    rf"( on an? {_any(COLORS, 'background')} background)?( ?, ?{_any(PLACES, 'place')})?"
)
_TWO = re.compile(
    rf"an? {_any(COLORS, 'color')} {_any(SHAPES, 'shape')} on the {_any(PLACES, 'place')}"
    rf" and an? {_any(COLORS, 'color2')} {_any(SHAPES, 'shape2')} on the {_any(PLACES, 'place2')}"
    rf"( ?, ?{_any(COLORS, 'background')} background)?"
)
_SOME = re.compile(rf"{ANY}s( on an? {_any(COLORS, 'background')} background)?")


def parse(caption: str) -> Scene | None:
    """The scene of a caption, or None when it is outside the grammar (`hint` says why).

    Case, spaces, a final full stop and the choice between `a` and `an` do not matter.
    """
    text = _normal(caption)
    if found := _ONE.fullmatch(text):
        shape = None if found["shape"] == ANY else found["shape"]
        return Scene((Item(found["color"], shape, found["size"], found["place"]),), found["background"])
    if found := _SOME.fullmatch(text):
        return Scene((), found["background"])
    found = _TWO.fullmatch(text)
    if found is None or (found["place"], found["place2"]) not in PAIRS:
        return None
    first = Item(found["color"], found["shape"], place=found["place"])
    second = Item(found["color2"], found["shape2"], place=found["place2"])
    return Scene((first, second), found["background"])


def hint(caption: str) -> str | None:
    """What the tiny cascade cannot follow in a caption, in one sentence; None inside the grammar and for no caption."""
    text = _normal(caption)
    if not text:
        return None
    scene = parse(text)
    if scene is not None:
        if scene.background and any(item.color == scene.background for item in scene.items):
            return "A shape in the color of its background cannot be seen."
        return None
    known = {*COLORS, *SHAPES, ANY, f"{ANY}s", *SIZES, *PLACES, "a", "an", "on", "and", "the", "background"}
    unknown = list(dict.fromkeys(word for word in re.findall(r"[^\s,.]+", text) if word not in known))
    if unknown:
        words = ", ".join(repr(word) for word in unknown[:4])
        return f"The tiny cascade does not know {words}; it generates '{FORM}' or '{FORM_OF_TWO}'."
    return f"The tiny cascade knows these words, but not in this order; it generates '{FORM}' or '{FORM_OF_TWO}'."


def _normal(caption: str) -> str:
    return " ".join(caption.lower().split()).removesuffix(".").strip()


def held_out(color: str, shape: str, background: str) -> bool:
    """Whether this combination is kept for the evaluation: 24 of the 224, each color, shape and background alike."""
    c, s, b = COLORS.index(color), SHAPES.index(shape), COLORS.index(background)
    # Every color is held out with three of the four shapes. The steps keep the counts of the backgrounds equal too:
    # (s + step[s]) mod 4 takes every value once.
    return c % 4 != s and b == (c + (1, 2, 6, 3)[s]) % 8


def held_out_combinations() -> tuple[tuple[str, str, str], ...]:
    """All that are `held_out`, as (color, shape, background)."""
    return tuple(combination for combination in product(COLORS, SHAPES, COLORS) if held_out(*combination))


def fits(scene: Scene, *, unseen: bool = False) -> bool:
    """Whether the items can be seen on the background and, unless `unseen` is allowed, none of them is held out."""
    return all(_fits(item, background, unseen) for item in scene.items if (background := scene.background) is not None)


def _fits(item: Item, background: str, unseen: bool = False) -> bool:
    if item.color is None or item.shape is None:
        return item.color != background
    return item.color != background and (unseen or not held_out(item.color, item.shape, background))


def sample(rng: np.random.Generator) -> Scene:
    """A training scene: parts may be left out; nothing in it is held out, whatever the left-out parts become."""
    if rng.random() < TWO_SHAPES:
        places = choice(rng, PAIRS)
        items = tuple(Item(choice(rng, COLORS), choice(rng, SHAPES), place=place) for place in places)
    else:
        size = None if rng.random() < NO_SIZE else choice(rng, SIZES)
        place = None if rng.random() < NO_PLACE else choice(rng, PLACES)
        items = (Item(choice(rng, COLORS), choice(rng, SHAPES), size, place),)
    background = None if rng.random() < NO_BACKGROUND else _background(rng, items)
    return Scene(items, background)


def complete(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its left-out parts chosen at random (of several shapes the sizes stay None)."""
    items = scene.items or tuple(Item(None, None, place=place) for place in choice(rng, SEVERAL))
    if len(items) == 1:
        item = items[0]
        size, place = item.size or choice(rng, SIZES), item.place or choice(rng, PLACES)
        items = (replace(item, size=size, place=place),)
    if any(item.color is None or item.shape is None for item in items):
        return _colored(items, scene.background, rng)
    return Scene(items, scene.background or _background(rng, items))


def _colored(items: tuple[Item, ...], background: str | None, rng: np.random.Generator) -> Scene:
    """The items with colors and shapes that fit the background."""
    while True:
        filled = (replace(item, color=item.color or choice(rng, COLORS)) for item in items)
        every = tuple(replace(item, shape=item.shape or choice(rng, SHAPES)) for item in filled)
        scene = Scene(every, background or choice(rng, COLORS))
        if fits(scene):
            return scene


def _background(rng: np.random.Generator, items: tuple[Item, ...]) -> str:
    return choice(rng, tuple(color for color in COLORS if all(_fits(item, color) for item in items)))


def choice(rng: np.random.Generator, values: Sequence[T]) -> T:
    """Any one of the values."""
    return values[int(rng.integers(len(values)))]
