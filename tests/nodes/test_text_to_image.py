"""The whole graph of our nodes, on a real host."""

from __future__ import annotations

from typing import Any

import torch

from tests.nodes.hosting import Graph, Outputs
from tests.nodes.networks import file_name

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
