from __future__ import annotations

import torch

from cascade.conditioning import StageBInputs, StageCInputs, TextEmbedding

EMPTY = TextEmbedding(torch.full((1, 77, 6), 7.0), torch.full((1, 1, 5), 8.0))


def test_stage_c_without_the_prompt():
    text = TextEmbedding(torch.rand(2, 154, 6), torch.rand(2, 1, 5))
    inputs = StageCInputs.of(text, torch.rand(2, 3, 4))
    other = inputs.unconditional(EMPTY)
    assert torch.equal(other.clip_text, EMPTY.hidden.expand(2, -1, -1))
    assert torch.equal(other.clip_text_pooled, EMPTY.pooled.expand(2, -1, -1))
    assert torch.equal(other.clip_img, torch.zeros(2, 3, 4))
    assert list(inputs.as_kwargs()) == ["clip_text", "clip_text_pooled", "clip_img"]


def test_stage_c_without_an_image():
    text = TextEmbedding(torch.rand(2, 77, 6), torch.rand(2, 1, 5))
    assert torch.equal(StageCInputs.without_image(text, 4).clip_img, torch.zeros(2, 1, 4))


def test_stage_b_without_the_prompt():
    inputs = StageBInputs(torch.rand(2, 16, 3, 3), torch.rand(2, 1, 5))
    other = inputs.unconditional(EMPTY)
    assert torch.equal(other.stage_c, torch.zeros(2, 16, 3, 3))
    assert torch.equal(other.clip, EMPTY.pooled.expand(2, -1, -1))
    assert list(inputs.as_kwargs()) == ["effnet", "clip"]
