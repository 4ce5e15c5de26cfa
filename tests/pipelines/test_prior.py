"""Prompts through an image embedding: seeds, guidance, whole runs, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import TextEmbedding
from cascade.diffusion import Guidance
from cascade.errors import IncompatibleCheckpoint
from cascade.pipelines import PRIOR_SETTINGS, Parts, PriorPrompt, SamplingSettings, Settings, generate, sample_prior
from tests import small
from tests.support import relative_error

pytestmark = pytest.mark.numeric

FEW = Settings(
    width=96, height=96, stage_c=SamplingSettings(steps=2, shift=2.0), stage_b=SamplingSettings(steps=1, shift=1.0)
)


def text(count: int, seed: int = 0) -> TextEmbedding:
    noise = torch.Generator().manual_seed(seed)
    return TextEmbedding(
        torch.randn(count, 7, small.TEXT, generator=noise), torch.randn(count, 1, small.POOLED, generator=noise)
    )


def sampled(texts: TextEmbedding, seeds: list[int], cfg: float = 2.0) -> Tensor:
    settings = replace(PRIOR_SETTINGS, steps=4, guidance=Guidance(cfg=cfg, cfg_rescale=0.0))
    return sample_prior(small.prior(), texts, text(1, 9), seeds=seeds, settings=settings)


def test_an_embedding_follows_from_its_text_and_seed_alone() -> None:
    texts = text(3)
    found = sampled(texts, [4, 5, 4])
    assert found.shape == (3, 1, small.IMAGE)
    second = sampled(TextEmbedding(texts.hidden[1:2], texts.pooled[1:2]), [5])
    assert relative_error(second, found[1:2]) < 1e-5
    assert relative_error(found[0], found[2]) > 1e-3  # the same seed, another text
    assert relative_error(sampled(texts, [6, 5, 4])[0], found[0]) > 1e-3


def test_guidance_leads_away_from_the_negative_text() -> None:
    assert relative_error(sampled(text(1), [1], cfg=4.0), sampled(text(1), [1], cfg=1.0)) > 1e-3
    same = text(1, 9)
    assert relative_error(sampled(same, [1], cfg=4.0), sampled(same, [1], cfg=1.0)) < 1e-5


def made(prompt: str, **options: Any) -> Tensor:
    return generate(Parts(small.small_cascade()), [prompt], seeds=[3], settings=FEW, **options).stage_c


def test_images_come_from_the_embedding_and_not_from_the_text() -> None:
    prior = PriorPrompt(net=small.prior())
    red, blue = (made(f"a {color} circle", prior=prior) for color in ("red", "blue"))
    assert relative_error(red, blue) > 1e-4
    constant = small.prior()
    constant.out.weight.zero_()
    same = [made(f"a {color} circle", prior=PriorPrompt(net=constant)) for color in ("red", "blue")]
    assert torch.equal(*same)


def test_it_mixes_with_images_to_vary() -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    prior = PriorPrompt(net=small.prior())
    found = [made("a circle", prior=prior), made("a circle", variation_of=image)]
    both = made("a circle", prior=prior, variation_of=image)
    assert all(relative_error(both, each) > 1e-4 for each in found)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_halves_give_almost_the_same(dtype: torch.dtype, limit: float) -> None:
    texts = text(2)
    halves = sample_prior(small.prior().to(dtype), texts, text(1, 9), seeds=[1, 2])
    assert relative_error(halves, sample_prior(small.prior(), texts, text(1, 9), seeds=[1, 2])) < limit


def test_a_text_of_another_encoder_is_refused() -> None:
    wrong = TextEmbedding(torch.zeros(1, 7, small.TEXT + 1), torch.zeros(1, 1, small.POOLED))
    with pytest.raises(IncompatibleCheckpoint, match="text encoder of one cascade"):
        sample_prior(small.prior(), wrong, wrong, seeds=[1])
