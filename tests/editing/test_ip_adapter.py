"""Image prompts in the attention of one block: what is added, where, when and to which rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs
from cascade.editing import BLOCK_WEIGHTS, AdapterTokens, IPAdapters, StyleAligned
from cascade.errors import InvalidSettings
from cascade.models import AttentionCall, scaled_dot_product_attention
from tests.editing.test_controllers import BOTH as BOTH_ROWS
from tests.editing.test_controllers import CALL as ONE_ROW
from tests.editing.test_controllers import HEADS, SIZE, WIDTH, block

pytestmark = pytest.mark.numeric

BLOCKS = 4
CALL, BOTH = (replace(call, blocks=BLOCKS) for call in (ONE_ROW, BOTH_ROWS))


def keys_values(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 5, WIDTH, generator=made), torch.randn(1, 5, WIDTH, generator=made)) for _ in range(BLOCKS)]


def prompt(**options: Any) -> AdapterTokens:
    return AdapterTokens(**{"keys_values": keys_values(), **options})


def added(controller: IPAdapters, given: AttentionCall, call: Any = CALL) -> Tensor:
    """What the controller adds to the block's own attention."""
    around = controller.around(call)
    assert around is not None
    return around(given) - given.plain()


def expected(given: AttentionCall, number: int = 0, seed: int = 1) -> Tensor:
    k, v = keys_values(seed)[number]
    return scaled_dot_product_attention(given.q, k.expand(len(given.q), -1, -1), v.expand(len(given.q), -1, -1), HEADS)


def test_the_attention_over_the_images_tokens_is_added_with_its_weight() -> None:
    given = block(2)
    for weight in (1.0, 0.3, -1.0):
        assert torch.allclose(added(IPAdapters([prompt(weight=weight)]), given), weight * expected(given), atol=1e-6)
    other = given._replace(block=2)
    assert torch.allclose(added(IPAdapters([prompt()]), other), expected(other, 2), atol=1e-6)


def test_several_prompts_add_up_in_any_order() -> None:
    given, prompts = block(1), [prompt(weight=0.5), prompt(keys_values=keys_values(2))]
    both = 0.5 * expected(given) + expected(given, seed=2)
    assert torch.allclose(added(IPAdapters(prompts), given), both, atol=1e-6)
    assert torch.allclose(added(IPAdapters(prompts[::-1]), given), both, atol=1e-6)


def test_only_rows_with_the_prompt_are_changed() -> None:
    given, controller = block(4), IPAdapters([prompt()])
    for call, rows in ((BOTH, [0, 1]), (replace(CALL, with_prompt=(False, True)), [2, 3])):
        found = added(controller, given, call)
        assert found[rows].abs().min() > 0
        assert not found[[i for i in range(4) if i not in rows]].any()
    assert controller.around(replace(CALL, with_prompt=(False,))) is None


def test_where_nothing_acts_nothing_is_done() -> None:
    for options in ({"weight": 0.0}, {"start_percent": 0.6}, {"end_percent": 0.4}):
        assert IPAdapters([prompt(**options)]).around(CALL) is None


@pytest.mark.parametrize(("blocks", "numbers"), [("all", {0, 1, 2, 3}), ("composition", {0, 1}), ("style", {2, 3})])
def test_parts_of_the_stack(blocks: str, numbers: set[int]) -> None:
    controller = IPAdapters([prompt(blocks=BLOCK_WEIGHTS[blocks])])
    changed = {i for i in range(BLOCKS) if added(controller, block(1)._replace(block=i)).any()}
    assert changed == numbers


def test_a_mask_says_where_and_how_much() -> None:
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., :6] = 0.5
    given = block(2)
    found, whole = (added(IPAdapters([prompt(mask=each)]), given) for each in (mask, None))
    found, whole = (x.unflatten(1, SIZE) for x in (found, whole))
    assert torch.allclose(found[:, :, :3], 0.5 * whole[:, :, :3], atol=1e-6)
    assert not found[:, :, 3:].any()


def test_beside_another_controller() -> None:
    given, other = block(4, BOTH), StyleAligned(weight=1.0)
    controller = IPAdapters([prompt()], within=other)
    around, alone = controller.around(BOTH), other.around(BOTH)
    assert around is not None
    assert alone is not None
    difference = around(given) - alone(given)
    assert torch.allclose(difference[:2], expected(given)[:2], atol=1e-5)
    assert not difference[2:].any()
    cond = StageCInputs(*torch.zeros(3, 1, 1, 1))
    assert controller.inputs(cond) is cond


def test_bad_settings() -> None:
    with pytest.raises(InvalidSettings, match="the mask of the IP-Adapter is empty"):
        prompt(mask=torch.zeros(1, 1, 4, 4))
    with pytest.raises(InvalidSettings, match="must not be above"):
        prompt(start_percent=0.6, end_percent=0.5)
