"""What all nodes share: their place in the menu, and schemas that an older ComfyUI understands as well."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "Stable Cascade"
LOADERS = f"{CATEGORY}/loaders"
CONDITIONING = f"{CATEGORY}/conditioning"
LATENT = f"{CATEGORY}/latent"
CONTROL = f"{CATEGORY}/controlnet"
SAMPLING = f"{CATEGORY}/sampling"
LORA = f"{CATEGORY}/lora"
TRAINING = f"{CATEGORY}/training"
IMAGES = f"{CATEGORY}/images"
CUSTOM_SAMPLING = f"{CATEGORY}/sampling/custom"

LoraType = io.Custom("CASCADE_LORA")
"""A LoRA in the library's form, whatever file or training it came from."""


def schema(**keywords: Any) -> io.Schema:
    """A node's schema; what this ComfyUI does not know yet is left out."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in keywords.items() if name in known})


def field(kind: Any, name: str, **keywords: Any) -> Any:
    """An input of a type (`io.Int`, ...); what this ComfyUI does not know yet is left out."""
    known = inspect.signature(kind.Input).parameters
    return kind.Input(name, **{key: value for key, value in keywords.items() if key in known})


def seed_field(tip: str) -> Any:
    """The seed of an image's noise."""
    limits = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}
    return field(io.Int, "seed", **limits, control_after_generate=True, tooltip=tip)


def frames_field(tip: str, **more: Any) -> Any:
    """How many images a sequence has, from one to another."""
    return field(io.Int, "frames", default=1, min=1, max=4096, **more, tooltip=tip)
