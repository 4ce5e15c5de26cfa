"""What all nodes share: menu categories, and schemas that also work in an older ComfyUI."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from comfy_api.latest import io

from ..cascade.diffusion import Guidance, SamplingSettings
from ..cascade.editing import BLOCK_WEIGHTS, BlockWeights
from ..cascade.pipelines import Preset, Tiles

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
EDITING = f"{CATEGORY}/editing"
STYLE = f"{CATEGORY}/style"
CUSTOM_SAMPLING = f"{CATEGORY}/sampling/custom"

LoraType = io.Custom("CASCADE_LORA")
"""A LoRA in the library's form, whatever file or training it came from."""

HighResGuideType = io.Custom("CASCADE_HIGH_RES_GUIDE")
"""High-res guides, loaded."""

SamplingOptionsType = io.Custom("CASCADE_SAMPLING_OPTIONS")
"""What the node Sampling Options sets."""

PERCENT = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001}
"""Limits of a share, such as a part of the run."""

NEWER = frozenset({"search_aliases", "essentials_category", "advanced"})
"""Schema keywords that not every supported ComfyUI knows. For any other unknown one the host raises TypeError."""

RANGES = "ranges"
"""The choice of `block_fields` with weights of the artist's own."""


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


def conditioning_fields() -> list[Any]:
    return [
        field(io.Conditioning, "positive", tooltip="What the image should show."),
        field(io.Conditioning, "negative", tooltip="What the image should not show. Trained: the empty prompt."),
    ]


@dataclass(frozen=True)
class SamplingOptions:
    """What the node Sampling Options sets.

    guidance: everything but its cfg.
    as_released: see `Start`.
    preset: of the node Preset; its settings are used in place of the sampler's own.
    """

    guidance: Guidance
    as_released: bool
    tiles: Tiles
    preset: Preset | None = None

    def with_cfg(self, cfg: float) -> Guidance:
        return replace(self.guidance, cfg=cfg)

    def settings(self, stage: str, denoise: float, *, cfg: float, **own: Any) -> SamplingSettings:
        """How a stage is sampled: by its own inputs, or by the preset."""
        if self.preset is None:
            return SamplingSettings(guidance=self.with_cfg(cfg), **own).with_strength(denoise)
        return self.preset.of(stage).with_strength(denoise)


RELEASED_OPTIONS = SamplingOptions(Guidance(), as_released=False, tiles=Tiles())


def block_fields() -> list[Any]:
    """The inputs of a node for `BlockWeights`, which `block_weights` reads."""
    return [
        field(
            io.Combo,
            "blocks",
            options=[*BLOCK_WEIGHTS, RANGES],
            default="all",
            tooltip="The blocks of Stage C that see them. composition: the first half; style: the second half; "
            "ranges: those of block_ranges.",
        ),
        field(
            io.String,
            "block_ranges",
            default="0-0.5=1, 0.5-1=0.5",
            tooltip="With ranges in blocks, these are parts of the network, from 0 (first block) to 1 (last), "
            "each with its weight from 0 to 1.",
        ),
    ]


def block_weights(blocks: str, block_ranges: str) -> BlockWeights:
    """Of these inputs. Raises InvalidSettings for ranges that are none."""
    return BlockWeights.of(block_ranges if blocks == RANGES else blocks)


def options_field() -> Any:
    tip = "Sampling Options, for what is rarely changed. Not connected: the released settings."
    return field(SamplingOptionsType, "options", optional=True, tooltip=tip)


def shift_field(default: float) -> Any:
    tip = f"Higher spends more steps at high noise levels, for larger images. Released: {default:g}."
    return field(io.Float, "shift", default=default, min=0.1, max=20.0, step=0.1, round=0.01, tooltip=tip)


def steps_field(default: int) -> Any:
    tip = f"Sampling steps. More give finer detail and take longer. Released: {default}."
    return field(io.Int, "steps", default=default, min=1, max=1000, tooltip=tip)


def run_fields(released: SamplingSettings, sampler_names: list[str]) -> list[Any]:
    """How a stage is sampled; the defaults are the released ones."""
    return [
        seed_field("Seed of the noise. The same seed gives the same image, alone or as the first of a batch."),
        steps_field(released.steps),
        cfg_field(released.guidance.cfg),
        field(
            io.Combo,
            "sampler_name",
            options=sampler_names,
            default="ddpm",
            tooltip="Released: ddpm. ddim adds no noise between steps; lcm is for models made for few steps.",
        ),
        field(
            io.Float,
            "denoise",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            round=0.001,
            tooltip="How much of latent_image is generated again: 1 all of it, less keeps more of an encoded image.",
        ),
        shift_field(released.shift),
    ]
