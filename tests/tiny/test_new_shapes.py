"""Shapes that the tiny cascade was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade import tiny
from cascade.pipelines import Parts
from cascade.tiny import drawing, new_shapes
from cascade.tiny.analysis import resemblance
from cascade.tiny.grammar import Item, Scene


@pytest.mark.parametrize("shape", new_shapes.SHAPES)
def test_a_drawing_resembles_its_shape_and_no_other(shape: str) -> None:
    target = new_shapes.drawn(shape)
    for number in range(4):
        for other in new_shapes.SHAPES:
            alike = resemblance(new_shapes.draw(other, number)[0], target)
            assert (alike >= new_shapes.ALIKE) == (other == shape), (other, number, alike)
    for known in drawing.OUTLINES:
        image = drawing.draw(Scene((Item("red", known, "large", "center"),), "white"), np.random.default_rng(1))
        assert resemblance(image, target) < new_shapes.ALIKE, known
    assert resemblance(np.zeros((64, 64, 3), np.uint8), target) == 0


def test_files_are_named_in_words(tmp_path: Path) -> None:
    new_shapes.write_drawings("ring", tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == new_shapes.COUNT
    assert all(" ring on a " in name for name in names)


def test_from_drawings_to_answers(tmp_path: Path) -> None:
    parts = Parts(tiny.parts())
    lora = new_shapes.learn("ring", parts, tmp_path, steps=2, class_images=2)
    assert lora is not None
    assert [token.text for token in lora.tokens] == ["[ring]"]
    judged, samples = new_shapes.judge_shape("ring", lora, parts, [0])
    assert [each.answer for each in judged] == [0]  # two steps teach nothing
    assert samples[0].prompt == "a red [ring] on a white background"
