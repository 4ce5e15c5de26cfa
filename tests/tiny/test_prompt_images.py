"""The evaluation of image prompts tells the first image from the second."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascade.pipelines import Parts
from cascade.tiny import image_prompt_evaluation
from cascade.tiny.image_prompt_evaluation import AIMS, image_prompt_rows


def test_each_weight_is_judged_by_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Made:
        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

    def first_image(parts: Any, prompts: Any, *, prompt_images: Any, **_: Any) -> Made:
        return Made(prompt_images[0].images[0])

    # Whatever the weights, the result is the first image: right, wrong, and one of both.
    monkeypatch.setattr(image_prompt_evaluation, "generate", first_image)
    made = image_prompt_rows(Parts({}), cases=21)
    assert [row.question for row in made.rows] == list(AIMS)
    assert [row.reached for row in made.rows] == [1.0, 0.0, 1.0]
    assert [len(row.answers) for row in made.rows] == [21] * 3
    assert len(made.samples) == 63
