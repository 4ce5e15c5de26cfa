"""Graphs of our nodes with the small random networks."""

from __future__ import annotations

from typing import Any

from tests.nodes.hosting import Graph, Outputs
from tests.nodes.networks import file_name

SETTINGS = {"sampler_name": "ddpm", "denoise": 1.0}
"""Inputs that both samplers share, at their defaults."""

OPTIONS = {
    "cfg_rescale": 0.7,
    "cfg_end": 0.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "rescale_scope": "per image",
    "img2img_noise_level": "matches denoise",
    "tile_size": 1024,
    "overlap": 256,
}
"""Inputs of Sampling Options, at their defaults."""


def cascade(graph: Graph, **changes: Any) -> tuple[Outputs, Outputs]:
    """Text to image with our nodes: the image, and Stage C's sampler."""
    clip = graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
    text = graph("CascadeTextEncode", clip=clip, positive="a (red:1.3) circle", negative="blurry")
    model = graph("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="default", previewer="auto")
    latent = graph("CascadeEmptyLatent", preset="custom", width=256, height=192, batch_size=1)
    stage_c = graph(
        "CascadeSampleStageC",
        model=model,
        positive=text[0],
        negative=text[1],
        latent_image=latent[0],
        seed=7,
        steps=3,
        cfg=4.0,
        shift=2.0,
        **SETTINGS,
    )
    decoder = graph("CascadeLoadStageB", unet_name=file_name("stage_b"), weight_dtype="default")
    stage_b = graph(
        "CascadeSampleStageB",
        model=decoder,
        positive=text[0],
        negative=text[1],
        stage_c=stage_c,
        latent_image=latent[1],
        seed=7,
        steps=2,
        cfg=1.1,
        shift=1.0,
        **SETTINGS,
    )
    vae = graph("CascadeLoadStageA", vae_name=file_name("stage_a"), weight_dtype="default")
    return graph("CascadeDecode", samples=stage_b, vae=vae, tiling="auto", tile_size=1024), stage_c


def sampled(previewer: str, steps: int = 4) -> Graph:
    """A graph that samples Stage C with the host's own KSampler."""
    graph = Graph()
    clip = graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
    text = graph("CascadeTextEncode", clip=clip, positive="a circle", negative="")
    result = graph(
        "KSampler",
        model=graph("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="default", previewer=previewer),
        positive=text[0],
        negative=text[1],
        latent_image=graph("CascadeEmptyLatent", preset="custom", width=256, height=192, batch_size=1)[0],
        seed=1,
        steps=steps,
        cfg=4.0,
        sampler_name="dpmpp_2m",
        scheduler="simple",
        denoise=1.0,
    )
    graph("Kept", name="latent", value=result)
    return graph


class LoadedGraph:
    """A graph with Stage C (and, where asked for, Stage B) loaded and a prompt encoded."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.model = self.graph(
            "CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="fp32", previewer="none"
        )
        self.clip = self.graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
        self.text = self.encoded("a red circle on the left")
        self.latent = self.graph("CascadeEmptyLatent", preset="custom", width=256, height=192, batch_size=1)

    def encoded(self, positive: str, clip: Any = None) -> Outputs:
        return self.graph("CascadeTextEncode", clip=clip or self.clip, positive=positive, negative="")

    def ksampler(self, **changes: Any) -> Outputs:
        given = {
            "model": self.model,
            "positive": self.text[0],
            "negative": self.text[1],
            "latent_image": self.latent[0],
            "seed": 5,
            "steps": 2,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        }
        return self.graph("KSampler", **{**given, **changes})

    def cascade(self, **changes: Any) -> Outputs:
        given = {
            "model": self.model,
            "positive": self.text[0],
            "negative": self.text[1],
            "latent_image": self.latent[0],
            "seed": 5,
            "steps": 2,
            "cfg": 4.0,
            "shift": 2.0,
        }
        return self.graph("CascadeSampleStageC", **{**given, **SETTINGS, **changes})
