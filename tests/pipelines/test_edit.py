"""Edits by the prompt, maps of words and regions in whole runs: what stays exactly the same, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cascade.editing import EditStrength, box_mask
from cascade.errors import InvalidSettings
from cascade.pipelines import Parts, RegionalPrompt, SamplingSettings, Settings, edit, generate, word_maps
from tests.small import small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric

FEW = Settings(
    width=160,
    height=128,
    stage_c=SamplingSettings(steps=3, guidance=Settings().stage_c.guidance, shift=2.0),
    stage_b=SamplingSettings(steps=1, guidance=Settings().stage_b.guidance, shift=1.0),
)
PROMPT, TO = "a red circle", "a green circle"
NOTHING = EditStrength(text=0, image=0, pooled=0, blend=0)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(small_cascade())


def made(parts: Parts, prompt: str, **options: Any) -> torch.Tensor:
    return generate(parts, [prompt], seeds=[5], settings=FEW, **options).stage_c


def test_the_first_image_is_the_plain_one(parts: Parts) -> None:
    found = edit(parts, PROMPT, TO, seeds=[5], settings=FEW)
    assert relative_error(found.source.stage_c, made(parts, PROMPT)) < 1e-5


def test_without_control_the_second_image_is_the_plain_one(parts: Parts) -> None:
    found = edit(parts, PROMPT, TO, seeds=[5], settings=FEW, strength=NOTHING)
    assert found.mask is None
    assert relative_error(found.target.stage_c, made(parts, TO)) < 1e-5
    assert relative_error(found.target.stage_c, found.source.stage_c) > 1e-3


@pytest.mark.parametrize("kept", ["text", "image", "pooled"])
def test_each_strength_holds_the_image_closer_to_the_first(parts: Parts, kept: str) -> None:
    plain = edit(parts, PROMPT, TO, seeds=[5], settings=FEW, strength=NOTHING).target.stage_c
    changed = edit(parts, PROMPT, TO, seeds=[5], settings=FEW, strength=replace(NOTHING, **{kept: 1})).target.stage_c
    assert relative_error(changed, plain) > 1e-4


def test_where_the_changed_words_are_not_seen_nothing_changes(parts: Parts) -> None:
    found = edit(parts, PROMPT, TO, seeds=[5, 6], settings=FEW, strength=replace(NOTHING, blend=0.9))
    assert found.mask is not None
    changes = found.mask.expand_as(found.target.stage_c) > 0
    assert changes.any()
    assert not changes.all()
    difference = (found.target.stage_c - found.source.stage_c).abs()
    assert difference[~changes].max() < 1e-6
    assert difference[changes].max() > 1e-3


def test_a_weight_of_1_changes_nothing_and_others_do(parts: Parts) -> None:
    plain = edit(parts, PROMPT, TO, seeds=[5], settings=FEW, strength=NOTHING).target.stage_c
    for factor, differs in ((1.0, False), (4.0, True), (0.0, True)):
        weights = {"green": factor}
        found = edit(parts, PROMPT, TO, seeds=[5], settings=FEW, strength=NOTHING, weights=weights).target.stage_c
        assert (relative_error(found, plain) > 1e-4) == differs


def test_several_seeds_are_the_same_alone(parts: Parts) -> None:
    both = edit(parts, PROMPT, TO, seeds=[5, 6], settings=FEW).target.stage_c
    alone = edit(parts, PROMPT, TO, seeds=[6], settings=FEW).target.stage_c
    assert relative_error(both[1:], alone) < 1e-4


def test_prompts_of_another_length_are_edited_too(parts: Parts) -> None:
    longer = f"{PROMPT}, {'very ' * 80}large"
    assert edit(parts, PROMPT, longer, seeds=[5], settings=FEW).target.images.isfinite().all()


def test_recording_words_does_not_change_the_image(parts: Parts) -> None:
    found, maps = word_maps(parts, PROMPT, ["red", "circle", "red circle"], seeds=[5], settings=FEW)
    assert torch.equal(found.images, generate(parts, [PROMPT], seeds=[5], settings=FEW).images)
    assert set(maps) == {"red", "circle", "red circle"}
    for each in maps.values():
        assert each.shape == (1, 1, 128, 160)
        assert float(each.min()) >= 0
        assert 0.8 < float(each.max()) <= 1
    assert not torch.equal(maps["red"], maps["circle"])


def test_a_region_changes_the_image_where_it_is(parts: Parts) -> None:
    plain = made(parts, PROMPT)
    left = RegionalPrompt(box_mask((0, 0, 0.5, 1)), "a blue square")
    found = made(parts, PROMPT, regions=[left])
    assert relative_error(found, plain) > 1e-3
    right = replace(left, mask=box_mask((0.5, 0, 1, 1)))
    assert relative_error(made(parts, PROMPT, regions=[right]), found) > 1e-3


def test_a_region_of_the_whole_image_with_nothing_of_the_base_is_its_prompt(parts: Parts) -> None:
    whole = RegionalPrompt(box_mask((0, 0, 1, 1)), TO)
    found = made(parts, PROMPT, regions=[whole])
    assert relative_error(found, made(parts, TO)) < relative_error(found, made(parts, PROMPT))


def test_what_cannot_be_edited_is_refused_before_sampling(parts: Parts) -> None:
    with pytest.raises(InvalidSettings, match="the same"):
        edit(parts, PROMPT, PROMPT, seeds=[5], settings=FEW)
    with pytest.raises(InvalidSettings, match="no word in common"):
        edit(parts, PROMPT, "blue owls", seeds=[5], settings=FEW)
    with pytest.raises(InvalidSettings, match="'owl' is not in the prompt"):
        edit(parts, PROMPT, TO, seeds=[5], settings=FEW, weights={"owl": 2.0})
    with pytest.raises(InvalidSettings, match="'owl' is not in the prompt"):
        word_maps(parts, PROMPT, ["owl"], seeds=[5], settings=FEW)


def test_regions_that_cannot_act_are_refused_before_sampling(parts: Parts) -> None:
    full, empty = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    with pytest.raises(InvalidSettings, match="mask of region 2 is empty"):
        made(parts, PROMPT, regions=[RegionalPrompt(full, TO), RegionalPrompt(empty, TO)])
    with pytest.raises(InvalidSettings, match="fewer regions"):
        made(parts, PROMPT, regions=[RegionalPrompt(full, TO)] * 40)
    for box in ((0, 0, 1.1, 1), (0.5, 0, 0.5, 1), (0, 0.6, 1, 0.4), (-0.1, 0, 1, 1)):
        with pytest.raises(InvalidSettings, match="not in the image"):
            box_mask(box)
