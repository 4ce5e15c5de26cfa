"""Images of reference in whole runs: what stays exactly the same, what changes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cascade import models
from cascade.conditioning.image import preprocess
from cascade.editing import ControlSteps, box_mask
from cascade.errors import InvalidSettings, MissingPart
from cascade.pipelines import Parts, RegionalPrompt, SamplingSettings, Settings, StyleReference, generate
from cascade.pipelines.style import look_of
from tests.checkpoints.files import network
from tests.small import small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric

FEW = Settings(
    width=160,
    height=128,
    stage_c=SamplingSettings(steps=3, guidance=Settings().stage_c.guidance, shift=2.0),
    stage_b=SamplingSettings(steps=1, guidance=Settings().stage_b.guidance, shift=1.0),
)
IMAGE, OTHER = (torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.manual_seed(4)
    previewer = models.initialize(models.Previewer(models.PreviewerConfig(width=8))).eval()
    return Parts({**small_cascade(), "previewer": previewer})


def made(parts: Parts, seeds: tuple[int, ...] = (5,), **options: Any) -> torch.Tensor:
    style = StyleReference(**options) if options else None
    return generate(parts, ["a red circle"] * len(seeds), seeds=seeds, settings=FEW, style=style).stage_c


def test_a_weight_of_zero_is_the_plain_run_bit_for_bit(parts: Parts) -> None:
    assert torch.equal(made(parts, image=IMAGE, weight=0.0), made(parts))


def test_style_content_and_control_each_change_the_image(parts: Parts) -> None:
    found = [
        made(parts),
        made(parts, image=IMAGE),
        made(parts, image=OTHER),
        made(parts, image=IMAGE, content=OTHER),
        made(parts, content=IMAGE),
        made(parts, image=IMAGE, control=ControlSteps(steps=2)),
        made(parts, image=IMAGE, content=OTHER, control=ControlSteps(steps=2)),
    ]
    for i, one in enumerate(found):
        assert all(relative_error(one, other) > 1e-4 for other in found[:i])


def test_a_style_descriptor_sees_in_the_place_of_the_image_encoder(parts: Parts) -> None:
    with_one = replace(parts, sources={**parts.sources, "style_descriptor": network("style_descriptor")})
    options = {"image": IMAGE, "content": OTHER, "control": ControlSteps(steps=2)}
    assert relative_error(made(with_one, **options), made(parts, **options)) > 1e-4
    assert torch.equal(made(with_one, image=IMAGE), made(parts, image=IMAGE))


def test_what_a_descriptor_sees() -> None:
    net: Any = network("style_descriptor")
    style, content = look_of(net)(IMAGE)
    expected = net(pixel_values=preprocess(IMAGE, 28))
    assert torch.equal(style, expected[0])
    assert torch.equal(content, expected[1])
    assert relative_error(style, content) > 0.1


def test_content_outside_its_mask_does_not_count(parts: Parts) -> None:
    mask = box_mask((0, 0, 1, 0.5))
    upper = torch.cat([OTHER[..., :56, :], IMAGE[..., 56:, :]], dim=-2)
    for control in (None, ControlSteps(steps=2)):
        options = {"image": IMAGE, "control": control}
        one, other = (made(parts, content=each, content_mask=mask, **options) for each in (OTHER, upper))
        whole, all_of_it = made(parts, content=OTHER, **options), torch.ones(1, 1, 9, 7)
        assert relative_error(one, whole) > 1e-4
        assert torch.equal(made(parts, content=OTHER, content_mask=all_of_it, **options), whole)
        if control is None:
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": IMAGE, "content_mask": torch.ones(1, 1, 8, 8)}, "needs the content"),
        ({}, "neither a style nor a content"),
        ({"content": OTHER, "control": ControlSteps()}, "needs a style"),
        ({"content": OTHER, "content_mask": torch.zeros(1, 1, 8, 8)}, "is empty"),
        ({"content": OTHER, "content_mask": torch.ones(2, 1, 8, 8)}, "these are 2"),
    ],
)
def test_references_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        StyleReference(**options)


def test_references_that_do_not_fit_the_images(parts: Parts) -> None:
    with pytest.raises(InvalidSettings, match="2 references for 1 images"):
        made(parts, image=torch.cat([IMAGE, OTHER]))


def test_an_image_does_not_depend_on_the_others_of_its_batch(parts: Parts) -> None:
    options = {"image": IMAGE, "control": ControlSteps(steps=2)}
    assert relative_error(made(parts, (5, 6), **options)[1:], made(parts, (6,), **options)) < 1e-4


def test_regions_and_a_style_are_not_for_one_run(parts: Parts) -> None:
    region = RegionalPrompt(box_mask((0, 0, 0.5, 1)), "a star")
    style = StyleReference(image=IMAGE)
    with pytest.raises(InvalidSettings, match="one of them"):
        generate(parts, ["a red circle"], seeds=[5], settings=FEW, style=style, regions=[region])


def test_what_a_reference_needs(parts: Parts) -> None:
    without = Parts({name: net for name, net in parts.sources.items() if name != "previewer"})
    made(without, image=IMAGE)
    with pytest.raises(MissingPart, match="previewer"):
        made(without, image=IMAGE, control=ControlSteps())
    with pytest.raises(InvalidSettings, match="from 0 to 1"):
        made(parts, image=IMAGE, weight=2.0)


PROMPTS, SEEDS = ["a red circle", "a star", "a blue square"], [5, 6, 7]


def shared(parts: Parts, weight: float, prompts: list[str] = PROMPTS) -> torch.Tensor:
    return generate(parts, prompts, seeds=SEEDS, settings=FEW, style_aligned=weight).stage_c


def test_the_others_follow_the_first_image_which_stays_as_it_is(parts: Parts) -> None:
    plain, aligned, half = (shared(parts, weight) for weight in (0.0, 1.0, 0.5))
    assert torch.equal(plain, generate(parts, PROMPTS, seeds=SEEDS, settings=FEW).stage_c)
    for found in (aligned, half):
        assert relative_error(found[:1], plain[:1]) < 1e-6
        assert relative_error(found[1:], plain[1:]) > 1e-3
    # What is shared is the first image's: with another one they change.
    assert relative_error(shared(parts, 1.0, ["a black dog", *PROMPTS[1:]])[1:], aligned[1:]) > 1e-4


def test_what_cannot_share_a_style(parts: Parts) -> None:
    with pytest.raises(InvalidSettings, match="similar length"):
        shared(parts, 1.0, ["a red circle", "a star", "a very long prompt " * 40])
    with pytest.raises(InvalidSettings, match="from 0 to 1"):
        shared(parts, 1.5)
    with pytest.raises(InvalidSettings, match="one of them"):
        generate(parts, PROMPTS, seeds=SEEDS, settings=FEW, style_aligned=1.0, style=StyleReference(image=IMAGE))
