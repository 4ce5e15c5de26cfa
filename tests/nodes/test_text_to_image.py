"""The whole graph of our nodes, on a real host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascade import tiny
from cascade.pipelines import Parts, Settings, generate
from tests.nodes.graphs import SETTINGS, cascade
from tests.nodes.hosting import Graph

TINY = "tiny cascade (included)"


def test_text_to_image(host: Any) -> None:
    def made(**changes: Any) -> Any:
        graph = Graph()
        image, stage_c = cascade(graph)
        graph.prompt[stage_c.node]["inputs"] |= changes
        return host.run(graph, image=image, stage_c=stage_c)

    first, again, other = made(), made(), made(seed=8)
    assert first.image.shape == (1, 192, 256, 3)
    assert first.stage_c["samples"].shape == (1, 16, 5, 6)
    assert torch.equal(first.image, again.image)
    assert float((first.image - other.image).abs().mean()) > 0.01


@pytest.mark.skipif(not all(path.exists() for path in tiny.parts().values()), reason="the tiny weights are not here")
def test_the_tiny_cascade_draws_what_the_library_draws(host: Any) -> None:
    """All loaders and settings at their defaults, the same seed: the same image as on the command line."""
    caption = "a large red circle on a blue background, left"
    expected = generate(
        Parts(tiny.parts()), [caption, caption], seeds=[3, 4], settings=Settings(width=256, height=256)
    ).images
    graph = Graph()
    clip = graph("CascadeLoadTextEncoder", clip_name=TINY, weight_dtype="default")
    text = graph("CascadeTextEncode", clip=clip, positive=caption, negative="")
    conds = {"positive": text[0], "negative": text[1], "seed": 3, **SETTINGS}
    latent = graph("CascadeEmptyLatent", preset="256 x 256 (tiny cascade)", width=256, height=256, batch_size=2)
    model = graph("CascadeLoadStageC", unet_name=TINY, weight_dtype="default", previewer="auto")
    stage_c = graph("CascadeSampleStageC", model=model, latent_image=latent[0], steps=20, cfg=4.0, shift=2.0, **conds)
    decoder = graph("CascadeLoadStageB", unet_name=TINY, weight_dtype="default")
    stage_b = graph("CascadeSampleStageB", model=decoder, stage_c=stage_c, steps=10, cfg=1.1, shift=1.0, **conds)
    vae = graph("CascadeLoadStageA", vae_name=TINY, weight_dtype="default")
    image = graph("CascadeDecode", samples=stage_b, vae=vae, tiling="auto", tile_size=1024)
    found = host.run(graph, image=image).image.movedim(-1, 1)
    assert found.shape == expected.shape
    assert float((found - expected).abs().mean()) < 0.01


def test_a_size_is_never_ignored(host: Any) -> None:
    for preset, size in (("custom", (320, 192)), ("1376 x 768 (16:9)", (1376, 768))):
        small, large = host.call("CascadeEmptyLatent", preset=preset, width=size[0], height=size[1], batch_size=2)
        assert large["samples"].shape == (2, 4, size[1] // 4, size[0] // 4)
        assert small["samples"].shape[:2] == (2, 16)
    with pytest.raises(host.errors.InvalidSettings, match=r"preset is 1376 x 768 .* are 640 x 480.*custom"):
        host.call("CascadeEmptyLatent", preset="1376 x 768 (16:9)", width=640, height=480, batch_size=1)
