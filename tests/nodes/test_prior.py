"""Prior: the library's embedding, what becomes of it in Stage C, and what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from cascade import tiny
from cascade.checkpoints import load_model
from cascade.diffusion import Guidance
from cascade.pipelines import Parts, PriorPrompt, SamplingSettings, Settings, encode_prompts, generate, sample_prior
from cascade.pipelines.prior import PRIOR_SETTINGS
from tests.nodes.graphs import SETTINGS
from tests.support import relative_error

pytestmark = pytest.mark.skipif(not tiny.path(tiny.PRIOR).exists(), reason="the tiny weights are not here")

TINY = "tiny cascade (included)"
TEXT, STEPS = "a large red circle on a blue background, left", 3


@cache
def texts(host: Any) -> tuple[Any, Any]:
    clip = host.call("CascadeLoadTextEncoder", clip_name=TINY, weight_dtype="fp32")[0]
    return host.call("CascadeTextEncode", clip=clip, positive=TEXT, negative="")


def embedded(host: Any, **changes: Any) -> Any:
    positive, negative = texts(host)
    given = {"positive": positive, "negative": negative, "seed": 5, "steps": 20, "cfg": 2.0, **changes}
    return host.call("CascadePrior", prior_name=TINY, **given)[0]


def test_the_embedding_is_the_librarys(host: Any) -> None:
    net: Any = load_model(tiny.path(tiny.PRIOR), dtype=torch.float32)
    found = Parts(tiny.parts()).use("text_encoder", lambda encoder: encode_prompts(encoder, [TEXT, ""]))
    expected = sample_prior(net, found[TEXT], found[""], seeds=[5], settings=PRIOR_SETTINGS)
    assert relative_error(embedded(host).image_embeds, expected[0]) < 1e-3
    assert relative_error(embedded(host, seed=6).image_embeds, expected[0]) > 1e-2


def test_stage_c_samples_it_as_the_library_does(host: Any) -> None:
    model = host.call("CascadeLoadStageC", unet_name=TINY, weight_dtype="fp32", previewer="none")[0]
    _, empty = texts(host)
    unclip = host.classes["unCLIPConditioning"]  # the host's, of the older kind
    [positive] = getattr(unclip(), unclip.FUNCTION)(empty, embedded(host), 1.0, 0.0)
    latent = {"samples": torch.zeros(1, 16, 6, 6)}
    given = {"seed": 5, "steps": STEPS, "cfg": 4.0, "shift": 2.0, **SETTINGS}
    [made] = host.call(
        "CascadeSampleStageC", model=model, positive=positive, negative=empty, latent_image=latent, **given
    )
    settings = Settings(
        width=256,
        height=256,
        stage_c=SamplingSettings(steps=STEPS, guidance=Guidance(cfg=4.0), shift=2.0),
        stage_b=SamplingSettings(steps=1),
    )
    net: Any = load_model(tiny.path(tiny.PRIOR), dtype=torch.float32)
    expected = generate(Parts(tiny.parts()), [TEXT], seeds=[5], prior=PriorPrompt(net=net), settings=settings).stage_c
    assert relative_error(made["samples"], expected) < 0.02


def test_what_is_no_text_is_refused(host: Any) -> None:
    [hidden, _] = texts(host)[0][0]
    with pytest.raises(host.errors.CascadeError, match="positive has no pooled text"):
        embedded(host, positive=[[hidden, {}]])
    wide = [[torch.zeros(1, 77, 1280), {"pooled_output": torch.zeros(1, 1280)}]]
    with pytest.raises(host.errors.CascadeError, match="text encoder of one cascade"):
        embedded(host, positive=wide, negative=wide)
