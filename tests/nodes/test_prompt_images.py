"""Image Prompt: the library's image prompts on a real host, with our sampler and ComfyUI's, and what it refuses."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs, TextEmbedding, noise_augmented
from cascade.diffusion import Guidance, SamplingSettings
from cascade.editing import COMBINE, BlockWeights, PlacedImages, PromptImages, SeenImages
from cascade.pipelines import StagePlan, Start, sample_stage_c
from tests.nodes import networks
from tests.nodes.networks import file_name, random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, clip, conditioning, images, model, stage_c
from tests.nodes.test_regions import LATENTS, LEFT, ksampler, region, sampled
from tests.support import relative_error

FIRST, SECOND = images(28, 28), 1 - images(28, 28)
SOFT = torch.linspace(0, 1, 48).expand(1, 32, 48)
AS_IT_IS = {
    "weights": "1",
    "combine": "concat",
    "strength": 1.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "blocks": "all",
    "block_ranges": "",
    "noise_augmentation": 0.0,
}


@cache
def vision(host: Any) -> Any:
    return host.call("CascadeLoadImageEncoder", clip_name=file_name("image_encoder"))[0]


def prompted(host: Any, *given: Tensor, to: Any = None, **changes: Any) -> Any:
    named = {f"image{i}": image for i, image in enumerate(given or (FIRST,))}
    inputs = {**AS_IT_IS, "clip_vision": vision(host), "conditioning": to or conditioning(POSITIVE), "images": named}
    return host.call("CascadeImagePrompt", **{**inputs, **changes})[0]


def seen(host: Any, image: Tensor) -> Tensor:
    """The embedding [1, 1, c]: the host's, which rounds pixels to whole 255ths."""
    return vision(host).encode_image(image).image_embeds[None].float()


@torch.no_grad()
def library(*placed: PlacedImages) -> Tensor:
    """What the library samples; the negative prompt has no image."""
    control, net = SeenImages(placed), networks.network("stage_c")
    plain = StageCInputs.without_image(TextEmbedding.join([POSITIVE] * 2), networks.IMAGE)
    plan = StagePlan(
        stage="stage_c",
        size=(16, 5, 6),
        seeds=[7, 8],
        settings=SamplingSettings(steps=4, shift=2.0, guidance=Guidance(cfg=4.0)).with_strength(0.5),
        cond=control.inputs(plain),
        uncond=plain.unconditional(NEGATIVE),
        start=Start(latents=LATENTS),
        attention=control.beside(None),
    )
    return sample_stage_c(net, plan)


def test_image_prompts_are_the_librarys(host: Any) -> None:
    first, second = seen(host, FIRST), seen(host, SECOND)
    whole = PlacedImages(images=PromptImages(first, (1.0,)))
    assert relative_error(sampled(host, prompted(host)), library(whole)) < 1e-4
    weighted = COMBINE["concat"]([first, second], [0.5, -0.8])
    found = sampled(host, prompted(host, FIRST, SECOND, weights="0.5, -0.8", mask=SOFT))
    assert relative_error(found, library(PlacedImages(images=weighted, mask=SOFT[None]))) < 1e-4
    how = {"start_percent": 0.2, "end_percent": 0.8, "strength": 0.7}
    noised = PromptImages(noise_augmented(COMBINE["average"]([first, second], [1, 3]).embeddings, 0.3), (1.0,))
    ranges = "0-0.4=1, 0.4-0.8=0.5"
    named = {"blocks": "ranges", "block_ranges": ranges, "noise_augmentation": 0.3, "combine": "average"}
    found = sampled(host, prompted(host, FIRST, SECOND, weights="1, 3", **named, **how))
    expected = PlacedImages(images=noised, blocks=BlockWeights.of(ranges), **how)
    assert relative_error(found, library(expected)) < 1e-4


def test_chained_prompts_act_beside_each_other_and_beside_regions(host: Any) -> None:
    left, right = SOFT.flip(2), SOFT
    both = prompted(host, SECOND, to=prompted(host, FIRST, mask=left), mask=right)
    parts = [
        PlacedImages(images=PromptImages(seen(host, image), (1.0,)), mask=mask[None])
        for image, mask in ((FIRST, left), (SECOND, right))
    ]
    assert relative_error(sampled(host, both), library(*parts)) < 1e-4
    alone, beside = (sampled(host, each) for each in (region(host, LEFT), region(host, LEFT, both)))
    assert relative_error(alone, beside) > 1e-3
    assert relative_error(sampled(host, both), beside) > 1e-3


def test_what_has_no_strength_changes_no_bit(host: Any) -> None:
    plain = stage_c(host, batch=2)
    for nothing in ({"strength": 0.0, "mask": SOFT}, {"weights": "0"}):
        given = prompted(host, **nothing)
        assert torch.equal(stage_c(host, batch=2, positive=given), plain)
    given = prompted(host, FIRST, SECOND, weights="1, 0")
    assert torch.equal(stage_c(host, positive=given), stage_c(host, positive=prompted(host)))
    assert not torch.equal(stage_c(host, batch=2, positive=given), plain)


def test_images_beside_the_negative_prompt(host: Any) -> None:
    plain = stage_c(host)
    negative = prompted(host, to=conditioning(NEGATIVE))
    assert relative_error(stage_c(host, negative=negative), plain) > 1e-3
    half = prompted(host, to=conditioning(NEGATIVE), strength=0.5)
    assert relative_error(stage_c(host, negative=half), stage_c(host, negative=negative)) > 1e-4
    off = prompted(host, to=conditioning(NEGATIVE), strength=0.0)
    assert torch.equal(stage_c(host, negative=off), plain)


def test_they_act_with_comfyuis_sampler(host: Any) -> None:
    given = prompted(host, mask=SOFT, blocks="style", end_percent=0.6)
    together = ksampler(host, given)
    assert relative_error(together, ksampler(host, conditioning(POSITIVE))) > 1e-3
    assert relative_error(ksampler(host, given, (1,)), together[1:]) < 1e-3


def test_the_hosts_own_unclip_has_noise_too(host: Any) -> None:
    output = vision(host).encode_image(FIRST)

    def unclip(strength: float, noise: float) -> Any:
        entry = {"clip_vision_output": output, "strength": strength, "noise_augmentation": noise}
        return conditioning(POSITIVE, unclip_conditioning=[entry])

    assert relative_error(stage_c(host, positive=unclip(1.0, 0.0)), stage_c(host, positive=prompted(host))) < 1e-5
    noised = prompted(host, noise_augmentation=0.4)
    assert relative_error(stage_c(host, positive=unclip(1.0, 0.4)), stage_c(host, positive=noised)) < 1e-5
    assert relative_error(stage_c(host, positive=noised), stage_c(host, positive=prompted(host))) > 1e-3
    assert torch.equal(stage_c(host, positive=unclip(0.0, 0.0)), stage_c(host))


def test_what_cannot_be_is_refused_before_sampling(host: Any) -> None:
    for wrong, message in (
        ({"weights": "1, 2"}, "one for each of 1 images"),
        ({"weights": "much"}, "these are 'much'"),
        ({"images": {}}, "Image Prompt has no image"),
        ({"mask": torch.ones(2, 8, 8)}, "takes one mask, and these are 2"),
        ({"blocks": "ranges", "block_ranges": "colors"}, "'colors' is not a range of blocks"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "must not be above end_percent"),
        ({"images": {"image0": FIRST.expand(65, -1, -1, -1)}}, "have 65 images, and at most 64 can be read"),
        ({"mask": torch.zeros(1, 8, 8)}, "the mask is empty"),
        ({"images": {"image0": FIRST[0]}}, "This takes images"),
        ({"clip_vision": None}, "There is no image encoder"),
    ):
        with pytest.raises(host.errors.CascadeError, match=message):
            prompted(host, **wrong)


def test_another_image_encoder_is_refused(host: Any) -> None:
    given = prompted(host)
    given[0][1]["unclip_conditioning"][0]["clip_vision_output"].image_embeds = random(1, networks.IMAGE + 1)
    with pytest.raises(host.errors.CascadeError, match=f"width {networks.IMAGE}, and these have {networks.IMAGE + 1}"):
        stage_c(host, positive=given)


def test_control_by_the_model_and_by_the_prompt_are_not_mixed(host: Any) -> None:
    latent = {"samples": torch.ones(1, 16, 5, 6)}
    given = {"latent": latent, "words": "circle", "threshold": 0.5, "model": model(host, "stage_c")}
    text = host.call("CascadeTextEncode", clip=clip(host), positive="a red circle", negative="")[0]
    with pytest.raises(host.errors.CascadeError, match="so does a node on the model"):
        host.call("CascadeWordMap", positive=prompted(host, to=text, strength=0.5), **given)
