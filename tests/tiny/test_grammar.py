"""The captions: written and read alike, and what is kept from training stays out of it."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.tiny import grammar
from cascade.tiny.grammar import COLORS, PAIRS, PLACES, SHAPES, SIZES, Item, Scene

CAPTIONS = {
    "a large red circle on a blue background, left": Scene((Item("red", "circle", "large", "left"),), "blue"),
    "an orange star on an orange background": Scene((Item("orange", "star"),), "orange"),
    "a small white square, center": Scene((Item("white", "square", "small", "center"),)),
    "a black triangle": Scene((Item("black", "triangle"),)),
    "a red star on the left and an orange circle on the right, white background": Scene(
        (Item("red", "star", place="left"), Item("orange", "circle", place="right")), "white"
    ),
    "a red star on the top and a blue square on the bottom": Scene(
        (Item("red", "star", place="top"), Item("blue", "square", place="bottom"))
    ),
    "a large circle on a blue background, left": Scene((Item(None, "circle", "large", "left"),), "blue"),
    "a red shape": Scene((Item("red", None),)),
    "a shape, top": Scene((Item(None, None, place="top"),)),
    "shapes on an orange background": Scene((), "orange"),
    "shapes": Scene(()),
}

colors, shapes = st.sampled_from(COLORS), st.sampled_from(SHAPES)
backgrounds = st.none() | colors
singles = st.builds(
    Item,
    st.none() | colors,
    st.none() | shapes,
    st.none() | st.sampled_from(SIZES),
    st.none() | st.sampled_from(PLACES),
)
pairs = st.sampled_from(PAIRS).flatmap(
    lambda places: st.tuples(*(st.builds(Item, colors, shapes, st.none(), st.just(place)) for place in places))
)
scenes = st.builds(Scene, st.tuples(singles) | pairs | st.just(()), backgrounds)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_say_scenes(caption: str) -> None:
    assert grammar.parse(caption) == CAPTIONS[caption]
    assert grammar.write(CAPTIONS[caption]) == caption


@given(scenes)
def test_reads_what_it_writes(scene: Scene) -> None:
    assert grammar.parse(grammar.write(scene)) == scene


@pytest.mark.parametrize(
    "caption",
    ["  A Large  RED circle on an blue background , left.", "a large red circle on a blue\nbackground,left"],
)
def test_spelling_is_forgiven(caption: str) -> None:
    assert grammar.parse(caption) == CAPTIONS["a large red circle on a blue background, left"]
    assert grammar.hint(caption) is None


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a photo of an owl", "'photo', 'of', 'owl'"),
        ("red circle", "not in this order"),
        ("a red star on the right and a blue star on the left", "not in this order"),
        ("a red circle on a red background", "cannot be seen"),
    ],
)
def test_outside_the_grammar_there_is_a_hint(caption: str, told: str) -> None:
    hint = grammar.hint(caption)
    assert hint is not None
    assert told in hint


def test_no_caption_needs_no_hint() -> None:
    assert grammar.hint("  ") is None
    assert grammar.parse("") is None


def test_a_tenth_is_held_out_evenly() -> None:
    visible = [(c, s, b) for c, s, b in product(COLORS, SHAPES, COLORS) if c != b]
    held_out = grammar.held_out_combinations()
    assert set(held_out) <= set(visible)
    assert 0.09 < len(held_out) / len(visible) < 0.11
    for part in zip(*held_out):
        assert len(set(Counter(part).values())) == 1


def test_training_sees_nothing_held_out_and_everything_else() -> None:
    seen: Counter[tuple[str, str, str | None]] = Counter()
    for i in range(6000):
        rng = np.random.default_rng((1, i))
        scene = grammar.complete(grammar.sample(rng), rng)
        assert grammar.fits(scene)
        seen.update((item.color, item.shape, scene.background) for item in scene.items)
    held_out = grammar.held_out_combinations()
    assert not set(seen) & set(held_out)
    assert len(seen) == len(COLORS) * len(SHAPES) * (len(COLORS) - 1) - len(held_out)


@given(scenes.filter(grammar.fits), st.integers(0, 1000))
def test_completing_keeps_what_is_said(scene: Scene, seed: int) -> None:
    full = grammar.complete(scene, np.random.default_rng(seed))
    assert grammar.fits(full)
    assert full.background == (scene.background or full.background) is not None
    assert len(full.items) == len(scene.items) or (not scene.items and len(full.items) in (2, 3))
    for said, item in zip(scene.items, full.items):
        for name in ("color", "shape", "place"):
            assert getattr(item, name) == (getattr(said, name) or getattr(item, name)) is not None
        assert said.size in (None, item.size)
    assert all((item.size is None) == (len(full.items) > 1) for item in full.items)
