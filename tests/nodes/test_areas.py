"""ComfyUI's conditions for areas and masks on our MODELs: what they give, beside the library's prediction of each part.

One step: where a condition acts, the host takes the weighted mean of the predictions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs, TextEmbedding
from cascade.diffusion import Guidance, SamplingSettings, SeededNoise, sample
from cascade.images import Box, blended
from tests.nodes import networks, test_high_res
from tests.nodes.networks import random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, conditioning, embedding, stage_b, stage_c
from tests.support import relative_error

SIZE = (8, 16)
LEFT, RIGHT = slice(0, 8), slice(8, 16)
OTHER = embedding(5)
ALL, FADED = torch.ones(8), torch.tensor([1.0] * 7 + [0.5])
"""Weights of the left half's columns: of a mask, and of an area, which fades over a quarter of its size."""
ONE_STEP: dict[str, Any] = {"seed": 7, "steps": 1, "cfg": 1.0, "shift": 2.0, "sampler_name": "ddpm"}


def placed(host: Any, node: str, text: TextEmbedding = OTHER, **where: Any) -> Any:
    """What ComfyUI's own node makes of a prompt."""
    made = host.classes[node]()
    return getattr(made, made.FUNCTION)(conditioning=conditioning(text), strength=1.0, **where)[0]


def on_the_left(host: Any, text: TextEmbedding = OTHER) -> Any:
    return placed(host, "ConditioningSetAreaPercentage", text, width=0.5, height=1.0, x=0.0, y=0.0)


def on_the_right(host: Any, text: TextEmbedding) -> Any:
    return placed(host, "ConditioningSetAreaPercentage", text, width=0.5, height=1.0, x=0.5, y=0.0)


def masked_left(host: Any, bounds: str = "default") -> Any:
    mask = torch.zeros(1, *SIZE)
    mask[..., LEFT] = 1
    return placed(host, "ConditioningSetMask", mask=mask, set_cond_area=bounds)


def sampled(host: Any, positive: Any, **changes: Any) -> Tensor:
    given = {**ONE_STEP, "latent_image": {"samples": torch.zeros(1, 16, *SIZE)}, **changes}
    return stage_c(host, positive=positive, **given)


def predicted(text: TextEmbedding, columns: slice = slice(None)) -> Tensor:
    """The library's, of these columns alone."""
    noise = SeededNoise([7], "stage_c").start(16, *SIZE)[..., columns]
    settings = SamplingSettings(steps=1, shift=2.0, guidance=Guidance(cfg=1.0))
    cond = StageCInputs.without_image(text, networks.IMAGE).as_kwargs()
    return sample(networks.network("stage_c"), noise, settings, cond=cond)


def half_of(base: Tensor, left: Tensor, weight: Tensor = ALL) -> Tensor:
    """On the left the mean of both, with this weight of each column, on the right the base."""
    return torch.cat([(base[..., LEFT] + weight * left) / (1 + weight), base[..., RIGHT]], dim=-1)


def test_a_prompt_for_the_left_half_changes_nothing_else(host: Any) -> None:
    base = sampled(host, conditioning(POSITIVE))
    found = sampled(host, conditioning(POSITIVE) + on_the_left(host))
    assert torch.equal(found[..., RIGHT], base[..., RIGHT])
    assert relative_error(found[..., LEFT], base[..., LEFT]) > 1e-2
    assert relative_error(found, half_of(predicted(POSITIVE), predicted(OTHER, LEFT), FADED)) < 1e-3


def test_two_halves_are_each_their_own_image(host: Any) -> None:
    found = sampled(host, on_the_left(host, POSITIVE) + on_the_right(host, OTHER))
    expected = torch.cat([predicted(POSITIVE, LEFT), predicted(OTHER, RIGHT)], dim=-1)
    assert relative_error(found, expected) < 1e-3


def test_a_masked_prompt_reads_the_whole_image_or_its_bounds(host: Any) -> None:
    whole = sampled(host, conditioning(POSITIVE) + masked_left(host))
    assert relative_error(whole, half_of(predicted(POSITIVE), predicted(OTHER)[..., LEFT])) < 1e-3
    bounds = sampled(host, conditioning(POSITIVE) + masked_left(host, "mask bounds"))
    assert relative_error(bounds, half_of(predicted(POSITIVE), predicted(OTHER, LEFT))) < 1e-3


def test_high_res_guides_act_on_the_whole_image_and_not_on_areas(host: Any) -> None:
    guided = test_high_res.applied(host, random(1, 16, 4, 8))
    base, other = (sampled(host, conditioning(text), model=guided) for text in (POSITIVE, OTHER))
    assert relative_error(base, predicted(POSITIVE)) > 1e-2
    area = sampled(host, conditioning(POSITIVE) + on_the_left(host), model=guided)
    assert relative_error(area, half_of(base, predicted(OTHER, LEFT), FADED)) < 1e-3
    masked = sampled(host, conditioning(POSITIVE) + masked_left(host), model=guided)
    assert relative_error(masked, half_of(base, other[..., LEFT])) < 1e-3


def test_an_area_in_latents_of_8_pixels_is_explained(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    """ComfyUI's node with pixels counts in Stable Diffusion's latents; Stage C's are 5.3 times as small."""
    area = {"width": 352, "height": 352, "y": 0}
    beside = placed(host, "ConditioningSetArea", x=352, **area)
    with pytest.raises(
        host.errors.CascadeError, match=r"at 44, 0; Stage C's latent is 16 x 8.*Set Area with Percentage"
    ):
        sampled(host, conditioning(POSITIVE) + beside)
    over = placed(host, "ConditioningSetArea", x=0, **area)
    found = sampled(host, conditioning(POSITIVE) + over)
    assert "Set Area with Percentage" in caplog.text
    assert relative_error(found, (predicted(POSITIVE) + predicted(OTHER)) / 2) < 1e-3


def test_tiles_of_stage_b_are_areas_with_our_weights(host: Any) -> None:
    """The host's conditions for areas, one for each of our tiles, give what our tiles give."""
    small, size = random(1, 16, 2, 3, seed=9), (16, 32)
    steps = {"latent_image": {"samples": torch.zeros(1, 4, *size)}, "steps": 2}
    own = stage_b(host, small, tiling="always", tile_size=64, overlap=16, **steps)
    boxes: list[Box] = []

    def seen(x: Tensor, box: Box) -> Tensor:
        boxes.append(box)
        return x

    config = networks.CONFIGS["stage_b"]
    tiles = {"side": 16, "overlap": 4, "align": config.patch_size * 2 ** (len(config.levels) - 1)}
    blended(seen, torch.zeros(1, 1, *size), **tiles)
    assert len(boxes) > 1

    def weight(of: Box) -> Tensor:
        return blended(lambda x, box: torch.full_like(x, float(box == of)), torch.zeros(1, 1, *size), **tiles)[0]

    def in_areas(text: TextEmbedding) -> Any:
        where = {"set_cond_area": "mask bounds"}
        return [
            entry for box in boxes for entry in placed(host, "ConditioningSetMask", text, mask=weight(box), **where)
        ]

    found = stage_b(host, small, positive=in_areas(POSITIVE), negative=in_areas(NEGATIVE), **steps)
    assert relative_error(found, own) < 1e-3
    assert relative_error(found, stage_b(host, small, **steps)) > 1e-2
