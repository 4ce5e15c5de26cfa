"""What is measured of the ControlNets, on images that are as they should be, and on images that are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.images import composite
from cascade.pipelines import Parts
from cascade.tiny import control, grammar
from cascade.tiny.analysis import foreground
from cascade.tiny.drawing import draw

CASES = 4
NETS: Any = dict.fromkeys(("canny", "sketch", "inpainting", "super_resolution"))


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 16, images.shape[-2] // 32, images.shape[-1] // 32)


def evaluated(monkeypatch: pytest.MonkeyPatch, drawing: Any) -> dict[str, float]:
    """The rows' means where `generate` draws with `drawing(caption, seed)`."""
    hints = []

    def generate(parts: Any, captions: Any, *, seeds: Any, controls: Any, settings: Any, source: Any = None) -> Any:
        hints.append(controls[0].hint)
        images = torch.stack([drawing(caption, seed) for caption, seed in zip(captions, seeds)])
        if source is not None:
            images = composite(images, source.images, source.mask)
        return SimpleNamespace(images=images)

    monkeypatch.setattr(control, "generate", generate)
    result = control.evaluate_control(Parts({"effnet": Encoder()}), NETS, cases=CASES)
    assert [hint.shape[1] for hint in hints] == [1, 4, 4, 16, 1]
    assert len(result.samples) == 5 * CASES
    assert [row.aim for row in result.rows] == list(control.AIMS.values())
    assert all(len(row.answers) == CASES for row in result.rows)
    return {row.question: row.reached for row in result.rows}


def as_told(caption: str, seed: int) -> Tensor:
    scene = grammar.parse(caption)
    assert scene is not None
    return torch.from_numpy(draw(scene, np.random.default_rng((seed, 0, 4)))).movedim(-1, 0).float() / 255


def test_images_as_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluated(monkeypatch, as_told)
    # Other colors move the shapes of a drawing a little.
    for kind in ("canny", "sketch"):
        assert found.pop(f"{kind}: overlap of the outlines (IoU)") > 0.6
    assert set(found.values()) == {1.0}


def test_images_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluated(monkeypatch, lambda caption, seed: as_told("a small white circle on a black background, top", 1))
    assert found.pop("inpainting: the rest is the source, bit for bit") == 1.0
    assert max(found.values()) < 0.5


def test_the_foreground_is_the_shape() -> None:
    image = draw(grammar.parse("a large red square on a blue background, center"), np.random.default_rng(3))  # type: ignore[arg-type]
    mask = foreground(image)
    assert bool(mask[128, 128])
    assert not mask[:20].any()
    red = image[..., 0].astype(int) > image[..., 2]
    assert (mask & red).sum() / (mask | red).sum() > 0.98
    assert not foreground(np.full((64, 64, 3), 200, np.uint8)).any()
