"""Regional Prompt: the library's regions on a real host, with our sampler and ComfyUI's, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs, TextEmbedding
from cascade.diffusion import Guidance, SamplingSettings
from cascade.editing import Region, Regions, box_mask
from cascade.pipelines import Start
from tests.nodes import networks
from tests.nodes.networks import library_sample, random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, clip, conditioning, model, stage_b, stage_c
from tests.support import relative_error

LEFT, TOP = "a red circle", "a blue star"
LEFT_HALF = (0.0, 0.0, 0.5, 1.0)
LATENTS = 100 * random(2, 16, 5, 6, seed=4)
SOFT = torch.linspace(0, 1, 48).expand(1, 32, 48)


def region(host: Any, text: str, positive: Any = None, **changes: Any) -> Any:
    box = {"left": 0.0, "top": 0.0, "right": 0.5, "bottom": 1.0}
    given = {"clip": clip(host), "positive": positive or conditioning(POSITIVE), "strength": 0.8, **box}
    return host.call("CascadeRegionalPrompt", text=text, **{**given, **changes})[0]


def text_of(host: Any, text: str) -> TextEmbedding:
    [[hidden, extras]] = host.call("CascadeTextEncode", clip=clip(host), positive=text, negative="")[0]
    return TextEmbedding(hidden, extras["pooled_output"][:, None])


def library(host: Any, masks: dict[str, Tensor]) -> Tensor:
    regions = Regions([Region(mask, text_of(host, text)) for text, mask in masks.items()], base=0.2)
    cond = StageCInputs.without_image(TextEmbedding.join([POSITIVE] * 2), networks.IMAGE)
    return library_sample(
        "stage_c",
        regions.inputs(cond),
        NEGATIVE,
        size=(16, 5, 6),
        seeds=[7, 8],
        settings=SamplingSettings(steps=4, shift=2.0, guidance=Guidance(cfg=4.0)).with_strength(0.5),
        start=Start(latents=LATENTS),
        attention=regions,
    )


def sampled(host: Any, positive: Any) -> Tensor:
    """From images: at the level of pure noise the random network makes rounding larger."""
    return stage_c(host, latent_image={"samples": LATENTS}, denoise=0.5, positive=positive)


def test_regions_are_the_librarys(host: Any) -> None:
    positive = region(host, LEFT)
    expected = library(host, {LEFT: box_mask(LEFT_HALF)})
    assert relative_error(sampled(host, positive), expected) < 1e-4
    both = region(host, TOP, positive, left=0.5, right=1.0, bottom=0.5)
    masks = {LEFT: box_mask(LEFT_HALF), TOP: box_mask((0.5, 0, 1, 0.5))}
    assert relative_error(sampled(host, both), library(host, masks)) < 1e-4
    soft = region(host, LEFT, mask=SOFT)
    assert relative_error(sampled(host, soft), library(host, {LEFT: SOFT[None]})) < 1e-4


def test_strength_0_changes_no_bit(host: Any) -> None:
    plain = stage_c(host, batch=2)
    assert torch.equal(stage_c(host, batch=2, positive=region(host, LEFT, strength=0.0)), plain)
    assert not torch.equal(stage_c(host, batch=2, positive=region(host, LEFT)), plain)


def ksampler(host: Any, positive: Any, batch_index: tuple[int, ...] = (0, 1)) -> Tensor:
    """ComfyUI's own."""
    latent = {"samples": torch.zeros(len(batch_index), 16, 5, 6), "batch_index": list(batch_index)}
    settings = {"seed": 7, "steps": 4, "cfg": 4.0, "sampler_name": "ddim", "scheduler": "simple", "denoise": 1.0}
    given = {"model": model(host, "stage_c"), "negative": conditioning(NEGATIVE), "latent_image": latent}
    [out] = host.classes["KSampler"]().sample(positive=positive, **given, **settings)
    return out["samples"]


def test_regions_act_with_comfyuis_sampler(host: Any) -> None:
    plain, positive = ksampler(host, conditioning(POSITIVE)), region(host, LEFT)
    together = ksampler(host, positive)
    assert relative_error(together, plain) > 1e-2
    assert relative_error(ksampler(host, positive, (1,)), together[1:]) < 1e-3
    assert torch.equal(ksampler(host, region(host, LEFT, strength=0.0)), plain)


def test_stage_b_reads_the_prompt_of_the_whole_image(host: Any) -> None:
    small = stage_c(host)
    assert torch.equal(stage_b(host, small, positive=region(host, LEFT)), stage_b(host, small))


def test_masks_and_boxes_that_cannot_be_are_refused(host: Any) -> None:
    with pytest.raises(host.errors.InvalidSettings, match="The mask of the region 'a red circle' is empty"):
        region(host, LEFT, mask=torch.zeros(1, 64, 64))
    with pytest.raises(host.errors.InvalidSettings, match="these are 2: use a Regional Prompt for each"):
        region(host, LEFT, mask=torch.ones(2, 64, 64))
    for box in ({"left": 0.5, "right": 0.5}, {"top": 0.8, "bottom": 0.2}, {"right": 1.5}, {"left": -0.1}):
        with pytest.raises(host.errors.InvalidSettings, match="is not in the image"):
            region(host, LEFT, **box)


def test_more_regions_than_can_be_read_are_refused(host: Any) -> None:
    positive = conditioning(POSITIVE)
    for _ in range(32):
        positive = region(host, LEFT, positive)
    with pytest.raises(host.errors.InvalidSettings, match="33 regions have 2541 tokens, and at most 2464 can be read"):
        region(host, LEFT, positive)


def test_another_text_encoder_is_refused(host: Any) -> None:
    other = [[torch.zeros(1, 77, 8), {"pooled_output": torch.zeros(1, 8)}]]
    with pytest.raises(host.errors.IncompatibleCheckpoint, match=f"of width {networks.WIDTH}, positive of 8"):
        region(host, LEFT, other)


def test_regions_have_no_words_to_compare(host: Any) -> None:
    given = {"model": model(host, "stage_c"), "latent": {"samples": torch.ones(1, 16, 5, 6)}, "threshold": 0.5}
    positive = host.call("CascadeTextEncode", clip=clip(host), positive=LEFT, negative="")[0]
    with pytest.raises(host.errors.CascadeError, match="or one with regions"):
        host.call("CascadeWordMap", positive=region(host, TOP, positive), words="circle", **given)
