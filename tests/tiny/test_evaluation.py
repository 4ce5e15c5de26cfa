"""The evaluation counts rightly: everything for a model that draws what is asked, little for one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cascade.pipelines import Generated, Parts
from cascade.tiny import evaluation, grammar
from cascade.tiny.drawing import draw
from cascade.tiny.evaluation import Evaluation, Judged, Row, evaluate
from cascade.tiny.grammar import Item, Scene
from tests.small import small_cascade


class Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def encode(self, images: Tensor) -> Tensor:
        return images

    decode = encode


def images_of(captions: Sequence[str], seeds: Sequence[int], avoid: str = "") -> Tensor:
    """What a perfect model would draw."""
    drawn = []
    for caption, seed in zip(captions, seeds, strict=True):
        rng = np.random.default_rng(seed)
        scene = grammar.parse(caption) or grammar.complete(grammar.sample(rng), rng)
        while not grammar.parse(caption) and avoid in (scene.background, *(item.color for item in scene.items)):
            scene = grammar.complete(grammar.sample(rng), rng)
        drawn.append(torch.from_numpy(draw(scene, rng)).movedim(-1, 0) / 255)
    return torch.stack(drawn)


def draw_with(monkeypatch: pytest.MonkeyPatch, change: Any = lambda captions: captions) -> Parts:
    """Lets `evaluate` work with drawings of the changed captions in place of networks."""

    def generate(_parts: Parts, prompts: Sequence[str], *, seeds: Sequence[int], **given: Any) -> Generated:
        images = given.get("variation_of")
        images = images_of(change(prompts), seeds, given.get("negative", "")) if images is None else images
        return Generated(images, images, images)

    def reconstruct(_parts: Parts, images: Tensor, **_given: Any) -> Generated:
        return Generated(images, images, images)

    monkeypatch.setattr(evaluation, "generate", generate)
    monkeypatch.setattr(evaluation, "reconstruct", reconstruct)
    return Parts({"stage_a": Identity()})


def reached(result: Evaluation) -> dict[str, float]:
    return {row.question: row.reached for row in result.rows}


def test_a_perfect_model_reaches_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(draw_with(monkeypatch), prompts=45)
    shares = {row.question: row.reached for row in result.rows if row.unit == "%"}
    assert shares.pop("that color does not appear without a negative prompt") < 1
    assert {question: share for question, share in shares.items() if share < 1} == {}
    assert reached(result)["Stage A alone, PSNR"] == pytest.approx(100, abs=0.01)
    assert all(row.answers for row in result.rows)


def test_a_model_that_draws_other_prompts_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    result = reached(evaluate(draw_with(monkeypatch, change=lambda captions: [*captions[1:], captions[0]]), prompts=45))
    for question in ("background color", "shape color", "shape", "place", "both of two shapes"):
        assert result[question] < 0.5, question


def test_only_one_thing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    change = lambda captions: [caption.replace("circle", "square") for caption in captions]  # noqa: E731
    result = reached(evaluate(draw_with(monkeypatch, change=change), prompts=45))
    assert result["shape"] < 1
    assert result["shape color"] == result["place"] == result["size"] == result["the right number of shapes"] == 1


def test_prompts_are_the_promised_mixture() -> None:
    scenes = evaluation.held_out_scenes(300, 0)
    assert scenes == evaluation.held_out_scenes(300, 0)
    assert scenes[:50] == evaluation.held_out_scenes(50, 0)
    assert sum(map(evaluation.is_unseen, scenes)) == 100
    assert sum(len(scene.items) == 2 for scene in scenes) == 99
    assert all(grammar.fits(scene, unseen=True) and scene.background for scene in scenes)


def test_images_without_shapes_answer_every_question_with_no() -> None:
    scene = Scene((Item("red", "circle", "large", "left"),), "blue")
    answers = {j.question: j.answer for j in evaluation.judge(scene, evaluation.describe(np.full((64, 64, 3), 0.95)))}
    assert set(answers.values()) == {0.0}
    assert answers.keys() <= evaluation.AIMS.keys()


def test_a_run_of_networks_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: replace(getattr(evaluation.SETTINGS, name), steps=2) for name in ("stage_b", "stage_c")}
    monkeypatch.setattr(evaluation, "SETTINGS", replace(evaluation.SETTINGS, **few))
    parts = Parts(small_cascade())
    result = evaluate(parts, prompts=2)
    assert result.markdown() == evaluate(parts, prompts=2).markdown()
    assert [tuple(sample.image.shape) for sample in result.samples] == [(3, 256, 256)] * 2
    sheet = evaluation.contact_sheet(result.samples, columns=2)
    assert sheet.size == (520, 296)


def test_table() -> None:
    answers = tuple(Judged("shape", float(i < 9), unseen=i < 3) for i in range(10))
    rows = (Row("shape", answers, 0.9), Row("PSNR", (Judged("PSNR", 24.56),), 24.0, unit="dB"), Row("empty", ()))
    table = Evaluation(rows, ()).markdown().splitlines()
    assert table[2] == "| shape | >= 90.0 % | 90.0 % | 59.6 to 98.2 % | 10 | 85.7 % | 100.0 % |"
    assert table[3] == "| PSNR | >= 24.0 dB | 24.6 dB |  | 1 |  |  |"
    assert table[4] == "| empty |  |  |  | 0 |  |  |"


def test_psnr() -> None:
    assert evaluation.psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)) == pytest.approx(20, abs=1e-4)
