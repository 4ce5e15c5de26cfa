"""Prompts in the format of the API."""

from __future__ import annotations

from typing import Any

from PIL import Image

from tests.nodes.networks import file_name
from tests.server.serving import Server

Prompt = dict[str, Any]

SAMPLING = {"sampler_name": "ddpm", "denoise": 1.0, "positive": ["text", 0], "negative": ["text", 1]}


def node(kind: str, **inputs: Any) -> Prompt:
    return {"class_type": kind, "inputs": inputs}


def cascade(
    text: str = "a red circle", *, seed: int = 1, width: int = 256, height: int = 192, steps: int = 2
) -> Prompt:
    """Text to image with small random networks."""
    return {
        "clip": node("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32"),
        "c": node("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="default", previewer="auto"),
        "b": node("CascadeLoadStageB", unet_name=file_name("stage_b"), weight_dtype="default"),
        "a": node("CascadeLoadStageA", vae_name=file_name("stage_a"), weight_dtype="default"),
        "text": node("CascadeTextEncode", clip=["clip", 0], positive=text, negative=""),
        "size": node("CascadeEmptyLatent", preset="custom", width=width, height=height, batch_size=1),
        "stage_c": node(
            "CascadeSampleStageC",
            **{"model": ["c", 0], "latent_image": ["size", 0], "seed": seed, "steps": steps, "cfg": 4.0, "shift": 2.0},
            **SAMPLING,
        ),
        "stage_b": node(
            "CascadeSampleStageB",
            **{"model": ["b", 0], "stage_c": ["stage_c", 0], "latent_image": ["size", 1], "seed": seed, "steps": 2},
            **{"cfg": 1.1, "shift": 1.0},
            **SAMPLING,
        ),
        "decode": node("CascadeDecode", samples=["stage_b", 0], vae=["a", 0], tiling="auto", tile_size=1024),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="test"),
    }


def with_input(prompt: Prompt, name: str, key: str, value: Any) -> Prompt:
    changed = {**prompt[name]["inputs"], key: value}
    return {**prompt, name: {**prompt[name], "inputs": changed}}


def draws(server: Server, prompt: Prompt) -> tuple[int, int]:
    """The size of the one image that a prompt makes."""
    [path] = server.saved_images(server.run(prompt))
    return Image.open(path).size
