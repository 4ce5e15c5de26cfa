"""The shape that the tiny cascade never saw: its images, and the LoRA that teaches it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cascade import tiny
from cascade.adapters import Applied, Lora, LowRank, Token, attach, read_lora
from cascade.checkpoints import load_model
from cascade.conditioning import tokenizer
from cascade.pipelines import Parts
from cascade.tiny import drawing, grammar, hearts
from cascade.tiny.analysis import describe
from cascade.tiny.evaluation import evaluate_lora
from tests import small

SHAPES = tuple(drawing.OUTLINES)
needs_lora = pytest.mark.skipif(not tiny.path("lora").exists(), reason="the tiny LoRA is not here")


def test_hearts_are_seen_as_hearts_and_nothing_else_is() -> None:
    images, captions = hearts.batch(1, hearts.COUNT)
    assert [describe(image, SHAPES).items[0].shape for image in images] == ["heart"] * len(images)
    for image, caption in zip(images, captions, strict=True):
        found = describe(image, SHAPES)
        assert f"{found.items[0].color} {hearts.TOKEN} on" in caption
        assert f"{found.background} background" in caption
    drawn = drawing.batch(4, 40)
    for image, scene in zip(drawn.images, drawn.scenes, strict=True):
        assert sorted(str(item.shape) for item in describe(image, SHAPES).items) == sorted(
            item.shape for item in scene.items
        )


def test_the_grammar_does_not_know_them() -> None:
    assert drawing.HEART not in grammar.SHAPES
    assert grammar.parse("a red heart on a white background") is None
    assert "heart" not in {item.shape for _, _, scenes in [drawing.batch(1, 60)] for s in scenes for item in s.items}


def test_hearts_follow_from_seed_and_number() -> None:
    images, captions = hearts.batch(3, 4, size=64)
    again, caption = hearts.batch(3, 1, start=2, size=64)
    assert np.array_equal(images[2], again[0])
    assert captions[2] == caption[0]


@needs_lora
def test_the_lora_is_small_and_tells_what_it_is() -> None:
    path = tiny.path("lora")
    assert path.stat().st_size < 500_000
    lora = read_lora(path)
    assert [token.text for token in lora.tokens] == [hearts.TOKEN]
    assert lora.training["images"] == hearts.COUNT
    assert str(Path.home()) not in str(lora.training)


@needs_lora
@pytest.mark.skipif(not tiny.path("stage_c").exists(), reason="the tiny cascade's weights are not here")
def test_the_lora_fits_the_shipped_networks() -> None:
    stage_c, text = (load_model(tiny.path(kind), dtype=torch.float32) for kind in ("stage_c", "text_encoder"))
    lora = read_lora(tiny.path("lora"))
    with attach([Applied(lora)], stage_c=stage_c, text_encoder=text, tokenizer=tokenizer()) as attachment:
        assert attachment.tokens == (hearts.TOKEN,)
        assert attachment.changed["stage_c"] == len(lora.changes["stage_c"])


def test_the_evaluation_of_a_lora() -> None:
    """With random networks nothing is right, but everything is asked."""
    width = small.CONFIGS["stage_c"].levels[0].width
    change = LowRank(torch.randn(1, width), torch.randn(width, 1), 9.0)
    name = "down_blocks.0.2.attention.attn.to_q.weight"
    lora = Lora({"stage_c": {name: change}}, (Token(hearts.TOKEN, torch.randn(1, small.TEXT)),))
    seen: list[tuple[str, int, int]] = []
    result = evaluate_lora(
        Parts(small.small_cascade()), lora, seeds=2, prompts=1, on_progress=lambda *told: seen.append(told)
    )
    assert seen == [("the learned token", 2, 2), ("prompts without it", 1, 1)]
    assert [len(row.answers) for row in result.rows] == [2, 2, 1, 1, 1]
    assert [sample.prompt for sample in result.samples[:2]] == [f"a red {hearts.TOKEN} on a white background"] * 2
    assert result.rows[1].aim == 0.85
    assert ">= 85.0 %" in result.markdown()
