"""The seam in the library's runs: what a controller is told, and that nothing changes where it does nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs
from cascade.diffusion import Guidance, SamplingSettings
from cascade.editing import AttentionController, NetworkCall, Tokens
from cascade.models import AroundAttention, AttentionCall, StageC
from cascade.pipelines import StagePlan, sample_stage_c
from tests import small

pytestmark = pytest.mark.numeric

STEPS = 3


class Recorded(AttentionController):
    """Changes nothing, or leaves out the text where there is a prompt."""

    def __init__(self, changes: bool = False) -> None:
        self.changes = changes
        self.calls: list[NetworkCall] = []
        self.blocks: list[AttentionCall] = []

    def around(self, call: NetworkCall) -> AroundAttention:
        self.calls.append(call)

        def attend(block: AttentionCall) -> Tensor:
            self.blocks.append(block)
            made = block.plain()
            rows = call.rows(len(made))
            if self.changes and rows is not None:
                made = made.clone()
                made[rows] = 0
            return made

        return attend


class Silent(AttentionController):
    def around(self, call: NetworkCall) -> None:
        return None


def plan(lengths: tuple[int, int] = (7, 7), cfg: float = 4.0, images: int = 1) -> StagePlan[StageCInputs]:
    def inputs(length: int, seed: int) -> StageCInputs:
        like = torch.Generator().manual_seed(seed)
        text = torch.randn(2, length, small.TEXT, generator=like)
        return StageCInputs(text, torch.randn(2, 1, small.POOLED, generator=like), torch.zeros(2, images, small.IMAGE))

    return StagePlan(
        stage="stage_c",
        size=(16, 4, 3),
        seeds=[1, 2],
        settings=SamplingSettings(steps=STEPS, guidance=Guidance(cfg=cfg)),
        cond=inputs(lengths[0], 1),
        uncond=inputs(lengths[1], 2),
    )


def run(given: StagePlan[StageCInputs], attention: AttentionController | None = None) -> Tensor:
    net: StageC = small.part("stage_c")  # type: ignore[assignment]
    return sample_stage_c(net, replace(given, attention=attention))


def test_a_controller_that_does_nothing_changes_no_bit() -> None:
    given = plan()
    assert torch.equal(run(given, Silent()), run(given))
    assert torch.equal(run(given, Recorded()), run(given))
    assert not torch.equal(run(given, Recorded(changes=True)), run(given))


def test_it_is_told_where_in_the_run_and_in_the_batch_it_is() -> None:
    seen = Recorded()
    run(plan(images=2), seen)
    assert [call.with_prompt for call in seen.calls] == [(True, False)] * STEPS
    assert {call.tokens for call in seen.calls} == {Tokens(7, 4, 8)}
    percents = [call.percent for call in seen.calls]
    assert percents == sorted(set(percents))
    assert percents[0] >= 0
    assert percents[-1] < 1
    assert {block.k.shape[1] for block in seen.blocks} == {4 * 3 + Tokens(7, 4, 8).count}
    assert seen.calls[0].rows(4) == slice(0, 2)


def test_prompts_of_other_length_are_calls_of_their_own() -> None:
    seen = Recorded()
    run(plan(lengths=(7, 5)), seen)
    assert [call.with_prompt for call in seen.calls] == [(True,), (False,)] * STEPS
    assert [call.tokens.text for call in seen.calls] == [7, 5] * STEPS
    assert [call.rows(2) for call in seen.calls[:2]] == [slice(0, 2), None]


def test_without_guidance_there_is_the_prompt_alone() -> None:
    seen = Recorded()
    run(plan(cfg=1.0), seen)
    assert [call.with_prompt for call in seen.calls] == [(True,)] * STEPS
