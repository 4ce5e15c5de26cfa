"""The evaluation of styles: what its questions find in images that follow references, and in those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.pipelines import Parts, StyleReference
from cascade.tiny import grammar, style_evaluation
from cascade.tiny.analysis import describe
from cascade.tiny.drawing import draw
from cascade.tiny.grammar import Item, Scene

CASES = 12
COLORS, SHAPE = "green", "star"
BACKGROUND = "yellow"


def follows(prompt: str, seed: int, style: StyleReference | None, first: int | None) -> Scene:
    """All that a prompt and references say; the rest by chance."""
    words = prompt.replace(",", "").split()
    rng = np.random.default_rng(seed if first is None else first)
    ground = words[words.index("background") - 1] if "background" in words else None
    colors = [word for word in words if word in grammar.COLORS]
    item = Item(
        colors[0] if colors else COLORS,
        next((word for word in words if word in grammar.SHAPES), SHAPE),
        next((word for word in words if word in grammar.SIZES), "large"),
        next((word for word in words if word in grammar.PLACES), "center"),
    )
    scene = Scene((item,), ground or BACKGROUND)
    if style is None:
        color = grammar.COLORS[int(rng.integers(8))]
        other = grammar.COLORS[(grammar.COLORS.index(color) + 1) % 8]
        return scene if colors else Scene((Item(color, item.shape, item.size, item.place),), other)
    image = style.image if style.content is None else style.content
    assert image is not None
    seen = describe(image[0])
    if style.content is None:
        return Scene((Item(seen.items[0].color, item.shape, item.size, item.place),), seen.background)
    return Scene((Item(item.color, str(seen.items[0].shape), item.size, item.place),), scene.background)


def evaluated(monkeypatch: pytest.MonkeyPatch, *, deaf: bool = False) -> dict[str, float]:
    """question -> score of a fake generation that follows all, or, where it is `deaf`, no reference."""

    def generate(
        _: Any,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        settings: Any,
        style: StyleReference | None = None,
        style_aligned: float = 0.0,
    ) -> Any:
        first = seeds[0] if style_aligned and not deaf else None
        scenes = [follows(prompt, seed, None if deaf else style, first) for prompt, seed in zip(prompts, seeds)]
        drawn = [draw(scene, np.random.default_rng((seed, 0, 9))) for scene, seed in zip(scenes, seeds)]
        images: Tensor = torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 255
        return SimpleNamespace(images=images)

    monkeypatch.setattr(style_evaluation, "generate", generate)
    result = style_evaluation.evaluate_style(Parts({}), cases=CASES)
    assert all(len(row.answers) == CASES for row in result.rows)
    return {row.question: row.reached for row in result.rows}


def test_images_that_follow_their_references(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluated(monkeypatch)
    for name in ("style: colors of the reference", "style: shape, place and size of the prompt"):
        assert found[name] > 0.9
    for name in ("content: shape of the reference", "content: colors of the prompt", style_evaluation.ALIGNED):
        assert found[name] > 0.9
    assert found["without it: colors of the reference"] < 0.5
    assert found[style_evaluation.SEPARATE] < 0.5


def test_images_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluated(monkeypatch, deaf=True)
    assert found["style: colors of the reference"] < 0.5
    assert found["content: shape of the reference"] < 0.6
    assert found[style_evaluation.ALIGNED] < 0.5
    # The prompt is followed all the same.
    assert found["style: shape, place and size of the prompt"] > 0.9
