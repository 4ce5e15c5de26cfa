"""How much a LoRA changes where, told in numbers, words and an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade.adapters import Full, Lora, LowRank, Rows, Token, chart, norm_of, norms_by_block, summary
from cascade.adapters.lora import TABLE

QUERY = "up_blocks.1.2.attention.attn.to_q.weight"


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (LowRank(torch.randn(3, 6), torch.randn(8, 3), 2.0), (8, 6)),
        (LowRank(torch.randn(2, 4, 3, 3), torch.randn(8, 2, 1, 1), 1.0), (8, 4, 3, 3)),
        (Full(torch.randn(5)), (5,)),
        (Rows(torch.tensor([1, 3]), torch.randn(2, 4)), (6, 4)),
    ],
)
def test_a_norm_is_that_of_what_is_added(change: LowRank | Full | Rows, shape: tuple[int, ...]) -> None:
    assert norm_of(change) == pytest.approx(float(change.delta(torch.zeros(shape)).norm()), rel=1e-4)


def some_lora() -> Lora:
    change = LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    names = [QUERY, QUERY.replace("to_q", "to_k"), "down_blocks.0.10.mapper.weight", "down_blocks.0.2.mapper.weight"]
    text = {"text_model.encoder.layers.3.mlp.fc1.weight": change, TABLE: Rows(torch.tensor([0]), torch.ones(1, 4))}
    changes = {"stage_c": dict.fromkeys(names, change) | {"clf.1.bias": Full(torch.ones(4))}, "text_encoder": text}
    return Lora(changes, (Token("[a]", torch.zeros(2, 4), "dog"),), {"steps": 3, "empty": None})


def test_blocks_stand_in_the_order_of_the_network() -> None:
    norms = norms_by_block(some_lora())
    assert list(norms) == ["down 0.2", "down 0.10", "up 1.2", "text 3", "clf", "token_embedding"]
    assert norms["down 0.2"] == pytest.approx(4)
    assert norms["up 1.2"] == pytest.approx(4 * 2**0.5)
    assert norms["clf"] == norms["token_embedding"] == pytest.approx(2)


def test_norms_of_an_absurd_scale_are_shown() -> None:
    lora = Lora({"stage_c": {"clf.1.weight": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1e200)}})
    assert norms_by_block(lora) == {"clf": pytest.approx(4e200)}
    chart(norms_by_block(lora))


def test_a_bar_is_as_high_as_its_norm() -> None:
    pixels = np.asarray(chart({"down 0.2": 1.0, "up 1.2": 0.5})).astype(int)
    blue, red = ((np.abs(pixels - color).max(-1) < 8).any(1).sum() for color in ([31, 78, 140], [140, 59, 31]))
    assert red == pytest.approx(blue / 2, abs=3)
    assert chart({}).size == chart({"clf": 0.0}).size


def test_lines_for_people() -> None:
    lines = summary(some_lora())
    assert "rank: 1" in lines
    assert "changes of stage_c: 5" in lines
    assert "token: [a], 2 vectors, added to 'dog'" in lines
    assert "steps: 3" in lines
    assert not any(line.startswith("empty") for line in lines)
    assert "made for: any Stage C: it only has tokens" in summary(Lora({}, (Token("", torch.zeros(1, 4)),)))
