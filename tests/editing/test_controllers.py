"""What each controller makes of the attention of one block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs, TextEmbedding
from cascade.editing import (
    Alignment,
    EditStrength,
    NetworkCall,
    PromptToPrompt,
    Region,
    Regions,
    Tokens,
    WordMaps,
    box_mask,
)
from cascade.editing import maps as maps_module
from cascade.errors import InvalidSettings
from cascade.models import AttentionCall, scaled_dot_product_attention

pytestmark = pytest.mark.numeric

HEADS, WIDTH, SIZE = 2, 8, (4, 6)
PLACES = SIZE[0] * SIZE[1]
TEXT = 3
CALL = NetworkCall(0.5, (True,), Tokens(TEXT, 4, 4))
BOTH = replace(CALL, with_prompt=(True, False))
SAME = Alignment(torch.eye(TEXT), torch.zeros(TEXT), (1,), (1,))
KEEP_ALL = EditStrength(text=1, image=1, pooled=1, blend=0)


def block(batch: int, call: NetworkCall = CALL) -> AttentionCall:
    made = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(batch, n, WIDTH, generator=made) for n in (PLACES, *[PLACES + call.tokens.count] * 2))
    return AttentionCall(q, k, v, HEADS, scaled_dot_product_attention, 0, SIZE)


def run(controller: PromptToPrompt | Regions | WordMaps, given: AttentionCall, call: NetworkCall = CALL) -> Tensor:
    around = controller.around(call)
    assert around is not None
    return around(given)


def test_maps_are_the_attention_and_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given, maps = block(2), WordMaps()
    assert torch.equal(run(maps, given), given.plain())
    q, k = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (given.q, given.k))
    expected = (q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5).softmax(-1).mean(1)[..., PLACES : PLACES + TEXT]
    assert torch.allclose(maps.of([1]).flatten(1), expected[..., 1], atol=1e-6)
    assert torch.allclose(maps.of([0, 2]).flatten(1), expected[..., [0, 2]].mean(-1), atol=1e-6)
    # The same a few positions at a time, as for large images.
    monkeypatch.setattr(maps_module, "PAIRS", 500)
    parts = WordMaps()
    run(parts, given)
    assert torch.allclose(parts.of([1]), maps.of([1]), atol=1e-6)


def test_maps_are_of_the_rows_with_the_prompt() -> None:
    given, both, alone = block(4), WordMaps(), WordMaps()
    run(both, given, BOTH)
    run(alone, given._replace(q=given.q[:2], k=given.k[:2], v=given.v[:2]))
    assert torch.allclose(both.of([1]), alone.of([1]), atol=1e-6)
    assert WordMaps().around(replace(CALL, with_prompt=(False,))) is None


def test_the_source_is_not_changed_and_the_target_looks_as_it_does() -> None:
    given = block(4, BOTH)
    # The target's values are those of the source: it looks at the same things in the same way, whatever its keys.
    given = given._replace(v=given.v[[0, 0, 2, 3]])
    made, plain = run(PromptToPrompt(SAME, KEEP_ALL), given, BOTH), given.plain()
    assert torch.equal(made[[0, 2, 3]], plain[[0, 2, 3]])
    assert torch.allclose(made[1], plain[0], atol=1e-6)
    assert not torch.allclose(plain[1], plain[0], atol=1e-2)


def test_after_its_part_of_the_run_nothing_is_taken_over() -> None:
    off = EditStrength(text=0.5, image=0.5, pooled=0.5, blend=0)
    assert PromptToPrompt(SAME, off).around(CALL) is None
    given, recording = block(2), replace(off, blend=0.5)
    assert torch.allclose(run(PromptToPrompt(SAME, recording), given), given.plain(), atol=1e-6)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_strength_is_a_part(value: float) -> None:
    with pytest.raises(InvalidSettings, match="0 to 1"):
        EditStrength(image=value)


def test_a_new_word_is_seen_as_in_the_target_and_all_adds_up() -> None:
    given, text_only = block(2), EditStrength(text=1, image=0, pooled=0, blend=0)
    ones = given._replace(v=torch.ones_like(given.v))
    new = replace(SAME, new=torch.tensor([0.0, 1.0, 0.0]))
    weights = torch.tensor([1.0, 5.0, 1.0])
    for control in (PromptToPrompt(new, text_only), PromptToPrompt(SAME, text_only, weights)):
        assert torch.allclose(run(control, ones), torch.ones_like(given.q), atol=1e-6)
    only = given._replace(v=torch.zeros_like(given.v))
    only.v[:, PLACES + 1] = 1
    kept = EditStrength(text=0, image=0, pooled=0, blend=0.5)
    plain, more = (run(PromptToPrompt(SAME, kept, w), only) for w in (None, weights))
    assert (more[1] > plain[1]).all()
    assert torch.equal(more[0], plain[0])


def regions(base: float, *boxes: tuple[float, ...]) -> tuple[Regions, NetworkCall]:
    text = TextEmbedding(torch.zeros(1, TEXT, 5), torch.zeros(1, 1, 5))
    made = Regions([Region(box_mask(box), text) for box in boxes], base)
    inputs = made.inputs(StageCInputs(torch.zeros(1, TEXT, 5), torch.zeros(1, 1, 5), torch.zeros(1, 1, 5)))
    tokens = Tokens.of(**inputs.as_kwargs(), each=4)
    assert tokens == Tokens(TEXT * (1 + len(boxes)), 4 * (1 + len(boxes)), 4)
    return made, replace(CALL, tokens=tokens)


def changed(controller: Regions, call: NetworkCall, columns: list[int]) -> Tensor:
    """Where the result changes with the values of these tokens of the conditions [h, w]."""
    given = block(1, call)
    other = given._replace(v=given.v.clone())
    other.v[:, [PLACES + column for column in columns]] += 1
    difference = run(controller, other, call) - run(controller, given, call)
    return difference[0].abs().amax(-1).unflatten(0, SIZE) > 1e-6


def test_the_words_of_a_region_are_seen_in_it_alone() -> None:
    left = torch.zeros(SIZE, dtype=torch.bool)
    left[:, :3] = True
    controller, call = regions(0.0, (0, 0, 0.5, 1))
    base, own = [0, 1, 2, 6, 7, 8, 9], [3, 4, 5, 10, 11, 12, 13]
    assert torch.equal(changed(controller, call, own), left)
    assert torch.equal(changed(controller, call, base), ~left)
    # Image embeddings are for all.
    assert changed(controller, call, [14]).all()
    controller, call = regions(0.2, (0, 0, 0.5, 1))
    assert changed(controller, call, base).all()


def test_regions_share_where_they_overlap() -> None:
    controller, call = regions(0.0, (0, 0, 1, 1), (0.5, 0, 1, 1))
    first, second = changed(controller, call, [3]), changed(controller, call, [6])
    assert first.all()
    assert second[:, 3:].all()
    assert not second[:, :3].any()


def test_without_the_prompt_regions_do_nothing() -> None:
    controller, call = regions(0.2, (0, 0, 0.5, 1))
    assert controller.around(replace(call, with_prompt=(False,))) is None
    given, both = block(2, call), replace(call, with_prompt=(True, False))
    made, plain = run(controller, given, both), given.plain()
    assert torch.equal(made[1], plain[1])
    assert not torch.allclose(made[0], plain[0], atol=1e-3)
