"""Drawn edits: what the instruction names changes, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.tiny import grammar, instructions
from cascade.tiny.analysis import describe
from tests.tiny.test_editing import _image


@pytest.mark.parametrize("kind", list(instructions.KINDS))
def test_the_images_show_the_scenes(kind: str) -> None:
    for seed in range(20):
        rng = np.random.default_rng((seed, 1))
        edit = instructions.sample(rng, kind)
        for scene, pixels in zip((edit.before, edit.after), instructions.draw(edit, rng), strict=True):
            [item], seen = scene.items, describe(_image(pixels))
            [found] = seen.items
            assert seen.background == scene.background
            assert (found.color, found.shape) == (item.color, item.shape)
            assert (found.size, found.place) == (item.size, item.place)


def test_all_that_is_not_named_stays_as_it_is() -> None:
    rng = np.random.default_rng(1)
    before, after = instructions.draw(instructions.sample(rng, "color"), rng)
    changed = (before != after).any(-1)
    assert 0.01 < changed.mean() < 0.25
    rng = np.random.default_rng(2)
    before, after = instructions.draw(instructions.sample(rng, "place"), rng)
    # The same shape in the same colors elsewhere.
    assert np.array_equal(np.unique(before[0], axis=0), np.unique(after[0], axis=0))


def test_training_never_sees_a_combination_that_is_kept_from_it() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        edit = instructions.sample(rng)
        assert grammar.fits(edit.before)
        assert grammar.fits(edit.after)
        assert edit.before != edit.after
    for kind in ("color", "shape", "background"):
        assert not grammar.fits(instructions.sample(rng, kind, unseen=True).after)


def test_an_edit_depends_on_its_number_alone() -> None:
    whole, texts = instructions.batch(5, 4)
    some, same = instructions.batch(5, 2, start=2)
    assert whole.shape == (4, 256, 512, 3)
    assert texts[2:] == same
    assert np.array_equal(whole[2:], some)
