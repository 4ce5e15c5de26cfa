"""What is measured of a prior, on images that are as they should be, and on images that are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cascade.pipelines import Parts
from cascade.tiny import grammar, prior_evaluation
from cascade.tiny.drawing import draw
from cascade.tiny.prior_evaluation import ALL, DRAWN, PRIOR
from tests import small

CASES = 6


def as_told(caption: str, seed: int) -> torch.Tensor:
    scene = grammar.parse(caption)
    assert scene is not None
    rng = np.random.default_rng((seed, 0, 4))
    return torch.from_numpy(draw(grammar.complete(scene, rng), rng)).movedim(-1, 0).float() / 255


def test_images_are_judged_by_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def generate(parts: Any, captions: Any, *, seeds: Any, settings: Any, **given: Any) -> Any:
        calls.append(given)
        if "variation_of" in given:
            assert set(captions) == {""}
            return SimpleNamespace(images=given["variation_of"].flip(0))
        return SimpleNamespace(images=torch.stack([as_told(*each) for each in zip(captions, seeds)]))

    monkeypatch.setattr(prior_evaluation, "generate", generate)
    found = prior_evaluation.evaluate_prior(Parts({}), small.prior(), cases=CASES)
    assert [list(call) for call in calls] == [["prior"], ["variation_of"]]
    reached = {row.question: row.reached for row in found.rows}
    assert [row.aim for row in found.rows] == list(prior_evaluation.AIMS.values())
    assert reached[f"{PRIOR}: {ALL}"] == 1
    # Each image is another prompt's.
    assert reached[f"{DRAWN}: {ALL}"] < 0.5
    assert len(found.samples) == CASES
