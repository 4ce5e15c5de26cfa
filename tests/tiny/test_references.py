"""Image prompts with captions: what a caption leaves out is as in the image that is shown."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascade.tiny import grammar, references
from cascade.tiny.analysis import describe
from cascade.tiny.grammar import Scene
from cascade.training.data import to_images


@given(st.integers(0, 100_000))
def test_what_the_caption_leaves_out_is_as_in_the_image_that_is_shown(seed: int) -> None:
    shown, caption, scene = references.sample(np.random.default_rng(seed))
    said = grammar.parse(caption)
    assert said is not None
    assert grammar.fits(shown)
    assert grammar.fits(scene)
    (before,), (told,), (after,) = shown.items, said.items, scene.items
    for name in ("color", "shape", "size", "place"):
        left_out = getattr(told, name) is None
        assert getattr(after, name) == getattr(before if left_out else told, name)
    assert scene.background == (said.background or shown.background)
    assert told.color is None or told.shape is None


def test_images_show_what_their_captions_say() -> None:
    images, captions = references.batch(4, 40)
    assert images.shape == (40, 256, 512, 3)
    pairs, kinds = np.split(images, 2, axis=2), set()
    shown, learned = (map(describe, to_images(torch.from_numpy(part))) for part in map(np.ascontiguousarray, pairs))
    for caption, before, after in zip(captions, shown, learned, strict=True):
        scene = grammar.parse(caption)
        if scene is None:  # a word or two, as in negative prompts
            continue
        assert scene.background in (None, after.background)
        if scene == Scene((), scene.background):
            assert len(after.items) in (2, 3)
        assert all(any(_shows(item, found) for found in after.items) for item in scene.items)
        kinds.add((len(after.items), before.background == after.background))
    assert {count for count, _ in kinds} == {1, 2, 3}
    assert (1, False) in kinds


def _shows(item: grammar.Item, found: grammar.Item) -> bool:
    return all(getattr(item, name) in (None, getattr(found, name)) for name in ("color", "shape"))


def test_a_row_does_not_depend_on_how_it_is_read() -> None:
    images, captions = references.batch(4, 6, size=64)
    part, some = references.batch(4, 2, start=3, size=64)
    assert np.array_equal(part, images[3:5])
    assert some == captions[3:5]
