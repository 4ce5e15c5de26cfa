"""Nothing inside a step asks for a number of a tensor: a graphics card would have to finish all its work first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageBInputs, StageCInputs, TextEmbedding
from cascade.diffusion import Cache, Guidance, SamplingSettings
from cascade.pipelines import StagePlan
from cascade.pipelines.stages import sample_stage_b, sample_stage_c
from tests import small
from tests.support import Waits


def text() -> TextEmbedding:
    return TextEmbedding(torch.randn(2, 7, small.TEXT), torch.randn(2, 1, small.POOLED))


def run(kind: str, on_step: Callable[[int, int, Tensor], Any], net: Any, cache: Cache | None = None) -> None:
    guidance = Guidance(cfg=4.0, cfg_end=2.0, start_percent=0.1)
    common: dict[str, Any] = {
        "seeds": [1, 2],
        "settings": SamplingSettings(steps=4, guidance=guidance, cache=cache),
    }
    if kind == "stage_c":
        cond = StageCInputs.without_image(text(), small.IMAGE)
        plan = StagePlan(stage="stage_c", size=(16, 5, 6), cond=cond, uncond=cond.unconditional(text()), **common)
        sample_stage_c(net, plan, on_step)
    else:
        inputs = StageBInputs(torch.randn(2, 16, 5, 6), torch.randn(2, 1, small.POOLED))
        plan = StagePlan(stage="stage_b", size=(4, 20, 24), cond=inputs, uncond=inputs.unconditional(text()), **common)
        sample_stage_b(net, plan, on_step)


@pytest.mark.parametrize("cache", [None, Cache(inner_every=2, cfg_every=2)])
@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_no_step_asks_for_a_number(kind: str, cache: Cache | None) -> None:
    """From the end of the first step to the end of the last."""
    waits = Waits()

    def on_step(i: int, n: int, _x0: Tensor) -> None:
        waits.__enter__() if i == 0 else None
        waits.__exit__(None, None, None) if i == n - 1 else None

    run(kind, on_step, small.part(kind), cache)
    assert waits.calls > 100
    assert waits.found == []


def test_a_question_is_found() -> None:
    with Waits() as waits:
        bool(torch.ones(1) > 0)
        torch.equal(torch.ones(1), torch.ones(1))
    assert len(waits.found) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_no_step_waits_for_a_card(kind: str) -> None:
    import copy

    def on_step(i: int, n: int, _x0: Tensor) -> None:
        torch.cuda.set_sync_debug_mode("default" if i == n - 1 else "error")

    try:
        run(kind, on_step, copy.deepcopy(small.part(kind)).to("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
