"""The whole graph of our nodes, on a real host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascade import tiny
from cascade.pipelines import Parts, Settings, generate
from tests.nodes.hosting import Graph, Outputs
from tests.nodes.networks import file_name

TINY = "tiny cascade (included)"
SETTINGS = {
    "sampler": "ddpm",
    "denoise": 1.0,
    "rho": 0.7,
    "ramp": 1.0,
    "guidance_start": 1.0,
    "guidance_stop": 0.0,
    "rescale": "per image",
}
"""Inputs that both samplers share, at their defaults."""


def cascade(graph: Graph, **changes: Any) -> tuple[Outputs, Outputs]:
    """Text to image with our nodes: the image, and Stage C's sampler."""
    clip = graph("CascadeLoadTextEncoder", file=file_name("text_encoder"), dtype="fp32")
    text = graph("CascadeTextEncode", clip=clip, positive="a (red:1.3) circle", negative="blurry")
    model = graph("CascadeLoadStageC", file=file_name("stage_c"), dtype="auto", previewer="auto")
    latent = graph("CascadeEmptyLatent", preset="custom", width=256, height=192, batch_size=1)
    stage_c = graph(
        "CascadeSampleStageC",
        model=model,
        positive=text[0],
        negative=text[1],
        latent=latent[0],
        seed=7,
        steps=3,
        guidance=4.0,
        shift=2.0,
        **SETTINGS,
    )
    decoder = graph("CascadeLoadStageB", file=file_name("stage_b"), dtype="auto")
    stage_b = graph(
        "CascadeSampleStageB",
        model=decoder,
        positive=text[0],
        negative=text[1],
        stage_c=stage_c,
        latent=latent[1],
        seed=7,
        steps=2,
        guidance=1.1,
        shift=1.0,
        **SETTINGS,
    )
    vae = graph("CascadeLoadStageA", file=file_name("stage_a"), dtype="auto")
    return graph("CascadeDecode", latent=stage_b, vae=vae, tiling="auto", tile_size=1024), stage_c


def test_text_to_image(host: Any) -> None:
    graph = Graph()
    image, stage_c = cascade(graph)
    result = host.run(graph, image=image, stage_c=stage_c)
    assert result.image.shape == (1, 192, 256, 3)
    assert torch.isfinite(result.image).all()
    assert result.stage_c["samples"].shape == (1, 16, 5, 6)


@pytest.mark.skipif(not all(path.exists() for path in tiny.parts().values()), reason="the tiny weights are not here")
def test_the_tiny_cascade_draws_what_the_library_draws(host: Any) -> None:
    """All loaders and settings at their defaults, the same seed: the same image as on the command line."""
    caption = "a large red circle on a blue background, left"
    expected = generate(
        Parts(tiny.parts()), [caption, caption], seeds=[3, 4], settings=Settings(width=256, height=256)
    ).images
    graph = Graph()
    clip = graph("CascadeLoadTextEncoder", file=TINY, dtype="auto")
    text = graph("CascadeTextEncode", clip=clip, positive=caption, negative="")
    conds = {"positive": text[0], "negative": text[1], "seed": 3, **SETTINGS}
    latent = graph("CascadeEmptyLatent", preset="256 x 256 (tiny cascade)", width=64, height=64, batch_size=2)
    model = graph("CascadeLoadStageC", file=TINY, dtype="auto", previewer="auto")
    stage_c = graph("CascadeSampleStageC", model=model, latent=latent[0], steps=20, guidance=4.0, shift=2.0, **conds)
    decoder = graph("CascadeLoadStageB", file=TINY, dtype="auto")
    stage_b = graph("CascadeSampleStageB", model=decoder, stage_c=stage_c, steps=10, guidance=1.1, shift=1.0, **conds)
    vae = graph("CascadeLoadStageA", file=TINY, dtype="auto")
    image = graph("CascadeDecode", latent=stage_b, vae=vae, tiling="auto", tile_size=1024)
    found = host.run(graph, image=image).image.movedim(-1, 1)
    assert found.shape == expected.shape
    assert float((found - expected).abs().mean()) < 0.01
