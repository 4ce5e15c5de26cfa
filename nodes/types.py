"""What all nodes share: menu categories, and schemas that also work in an older ComfyUI."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "Stable Cascade"
LOADERS = f"{CATEGORY}/loaders"
CONDITIONING = f"{CATEGORY}/conditioning"
LATENT = f"{CATEGORY}/latent"
HIGH_RES = f"{CATEGORY}/high resolution"
CONTROL = f"{CATEGORY}/controlnet"
SAMPLING = f"{CATEGORY}/sampling"
LORA = f"{CATEGORY}/lora"
TRAINING = f"{CATEGORY}/training"
IMAGES = f"{CATEGORY}/images"
CUSTOM_SAMPLING = f"{CATEGORY}/sampling/custom"

LoraType = io.Custom("CASCADE_LORA")
"""A LoRA in the library's form, whatever file or training it came from."""

HighResGuideType = io.Custom("CASCADE_HIGH_RES_GUIDE")
"""High-res guides, loaded."""

SamplingOptionsType = io.Custom("CASCADE_SAMPLING_OPTIONS")
"""What the node Sampling Options sets."""


NEWER = frozenset({"search_aliases", "essentials_category", "advanced"})
"""Schema keywords that not every supported ComfyUI knows. For any other unknown one the host raises TypeError."""


def schema(**keywords: Any) -> io.Schema:
    """A node's schema; keywords that this ComfyUI does not have yet are left out."""
    return io.Schema(**supported(io.Schema, keywords))


def field(kind: Any, name: str, **keywords: Any) -> Any:
    """An input of a type (`io.Int`, ...); keywords that this ComfyUI does not have yet are left out."""
    return kind.Input(name, **supported(kind.Input, keywords))


def supported(made: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords without those of `NEWER` that this ComfyUI does not know."""
    known = inspect.signature(made).parameters
    return {name: value for name, value in keywords.items() if name in known or name not in NEWER}


def seed_field(tip: str) -> Any:
    """The seed of an image's noise."""
    limits = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}
    return field(io.Int, "seed", **limits, control_after_generate=True, tooltip=tip)


def cfg_field(default: float) -> Any:
    tip = (
        "Guidance scale. Higher follows the prompt more closely; 1 ignores the negative prompt and is twice as fast. "
        f"Released: {default:g}."
    )
    return field(io.Float, "cfg", default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tip)


def frames_field(tip: str, **more: Any) -> Any:
    """The number of images of a sequence."""
    return field(io.Int, "frames", default=1, min=1, max=4096, **more, tooltip=tip)
