"""Edits by instructions in whole runs: what has no effect, what has, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.diffusion import Guidance
from cascade.errors import IncompatibleCheckpoint, InvalidSettings
from cascade.pipelines import Control, Parts, SamplingSettings, Settings, follow, generate
from tests.small import instruct_network, small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric

FEW = Settings(
    width=160,
    height=128,
    stage_c=SamplingSettings(steps=3, guidance=Guidance(), shift=2.0),
    stage_b=SamplingSettings(steps=1, guidance=Guidance(cfg=1.1), shift=1.0),
)
TEXT = "make it green"


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(small_cascade())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 128, 160, generator=torch.Generator().manual_seed(3))


def followed(parts: Parts, images: Tensor, **options: Any) -> Tensor:
    given = {"settings": FEW, "seeds": range(5, 5 + len(images)), "network": instruct_network(), **options}
    return follow(parts, images, TEXT, given.pop("network"), **given).images


def test_strength_0_is_the_plain_run_bit_for_bit(parts: Parts, images: Tensor) -> None:
    plain = generate(parts, [TEXT], seeds=[5], settings=FEW).images
    assert torch.equal(followed(parts, images[:1], strength=0, image_cfg=2.0), plain)
    assert relative_error(followed(parts, images[:1]), plain) > 1e-3


def test_the_image_the_scale_and_the_lora_each_make_a_difference(parts: Parts, images: Tensor) -> None:
    base = followed(parts, images[:1])
    network = instruct_network()
    without_lora = replace(network, lora=replace(network.lora, changes={}))
    for other in (
        followed(parts, images[1:], seeds=[5]),
        followed(parts, images[:1], image_cfg=1.0),
        followed(parts, images[:1], network=without_lora),
    ):
        assert relative_error(other, base) > 1e-4


def test_an_image_is_the_same_alone_and_in_a_batch(parts: Parts, images: Tensor) -> None:
    both = followed(parts, images)
    alone = torch.cat([followed(parts, images[i : i + 1], seeds=[5 + i]) for i in range(2)])
    assert relative_error(both, alone) < 1e-4


def test_the_networks_are_as_before(parts: Parts, images: Tensor) -> None:
    before = {name: value.clone() for name, value in small_cascade()["stage_c"].state_dict().items()}
    followed(parts, images[:1])
    assert all(torch.equal(value, before[name]) for name, value in small_cascade()["stage_c"].state_dict().items())


def test_outside_a_mask_the_image_stays(parts: Parts, images: Tensor) -> None:
    mask = torch.zeros(1, 1, 128, 160)
    mask[..., :80] = 1
    found = followed(parts, images[:1], mask=mask)
    assert torch.equal(found[..., 80:], images[:1, ..., 80:])
    assert not torch.equal(found[..., :80], images[:1, ..., :80])


def test_guidance_by_the_image_follows_the_paper() -> None:
    with_both, with_image, without = torch.randn(3, 2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    guidance = Guidance(cfg=3.0, cfg_rescale=0, image_cfg=1.7)
    # Brooks et al. 2023, eq. 3.
    expected = without + 1.7 * (with_image - without) + 3.0 * (with_both - with_image)
    assert torch.allclose(guidance.combine(with_both, with_image, 0.5, without), expected, atol=1e-5)


def test_any_controlnet_can_be_guided_by(parts: Parts, images: Tensor) -> None:
    control = Control(net=instruct_network().net, hint=images[:1].mean(1, keepdim=True).expand(-1, 16, -1, -1))
    guided = replace(FEW, stage_c=replace(FEW.stage_c, guidance=Guidance(image_cfg=2.0)))
    plain, more = (
        generate(parts, [TEXT], seeds=[5], controls=[control], settings=settings).images for settings in (FEW, guided)
    )
    assert relative_error(more, plain) > 1e-4


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_instruction(parts: Parts, images: Tensor, text: str) -> None:
    with pytest.raises(InvalidSettings, match="the instruction is empty"):
        follow(parts, images, text, instruct_network(), seeds=[1, 2], settings=FEW)


def test_a_network_for_another_stage_c(parts: Parts, images: Tensor) -> None:
    from cascade.models import Level, StageC, StageCConfig, initialize

    config = StageCConfig(condition_channels=16, levels=(Level(32, 2, 1), Level(32, 2, 1)))
    network = instruct_network(initialize(StageC(config)))
    with pytest.raises(IncompatibleCheckpoint, match=r"made for a Stage C 32 wide .*this one is 16 wide"):
        followed(parts, images, network=network)


def test_unequal_numbers(parts: Parts, images: Tensor) -> None:
    with pytest.raises(ValueError, match="each image needs a seed"):
        follow(parts, images, TEXT, instruct_network(), seeds=[1], settings=FEW)
