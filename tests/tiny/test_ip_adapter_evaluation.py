"""What the evaluation of the IP-Adapter asks: right answers for right images, wrong ones for wrong images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cascade.pipelines import Parts
from cascade.tiny import drawing, ip_adapter_evaluation
from cascade.tiny.analysis import describe
from cascade.tiny.grammar import Item, Scene
from cascade.tiny.ip_adapter_evaluation import AIMS, FOLLOWED, evaluate_ip_adapter
from tests.small import ip_adapter

CASES = 6


def scores(monkeypatch: pytest.MonkeyPatch, place: str | None = None, shape: str | None = None) -> dict[str, float]:
    """Of images that show what the first image with a weight does, at the prompt's place or this one."""

    def generate(_: Any, prompts: list[str], *, ip_adapters: list[Any], **options: Any) -> Any:
        shown = next(each for each in ip_adapters if each.weight)
        seen = describe(shown.images[0])
        [item] = seen.items
        there = place or prompts[0].rpartition(", ")[2]
        scene = Scene((Item(item.color, shape or str(item.shape), item.size, there),), seen.background)
        image = torch.from_numpy(drawing.draw(scene, np.random.default_rng(0))).movedim(-1, 0)[None] / 255
        return SimpleNamespace(images=image)

    monkeypatch.setattr(ip_adapter_evaluation, "generate", generate)
    found = evaluate_ip_adapter(Parts({}), ip_adapter(), cases=CASES)
    assert len(found.samples) == CASES * 5
    assert {row.question for row in found.rows} == set(AIMS)
    return {row.question: row.reached for row in found.rows}


def test_images_that_follow_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(scores(monkeypatch).values()) == {1.0}


def test_another_place_or_shape_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = scores(monkeypatch, place="left")
    assert elsewhere[FOLLOWED] < 0.5
    assert elsewhere["IP-Adapter: shape"] == elsewhere["IP-Adapter: color"] == 1
    other = scores(monkeypatch, shape="star")
    assert other[FOLLOWED] < 1
    assert other["IP-Adapter: color"] == 1
