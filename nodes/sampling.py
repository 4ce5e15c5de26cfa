"""Sampling: a node for each stage with the released settings, and their pieces for custom sampling."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..cascade.diffusion import Guidance
from ..cascade.pipelines import compression_warning
from .host import checks, sampling
from .host import tiling as tiles
from .types import CUSTOM_SAMPLING, SAMPLING, field, schema, seed_field

PER_IMAGE, WHOLE_BATCH = "per image", "whole batch (as released)"
CORRECT, AS_RELEASED = "correct", "as released"
AUTO, NEVER, ALWAYS = "auto", "never", "always"


def conditioning_fields() -> list[Any]:
    return [
        field(io.Conditioning, "positive", tooltip="What the image should show."),
        field(io.Conditioning, "negative", tooltip="What to keep away; the empty prompt as the models were trained."),
    ]


def guidance_field(default: float) -> Any:
    tip = f"How much the prompt counts; 1 ignores the negative and is twice as fast. Released: {default:g}."
    return field(io.Float, "guidance", default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tip)


def guidance_fields() -> list[Any]:
    """What shapes guidance beyond its strength."""
    share = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001, "advanced": True}
    return [
        field(
            io.Float,
            "rho",
            default=0.7,
            **share,
            tooltip="How far guidance is kept from raising the contrast: 0 not at all, 1 wholly. Released: 0.7.",
        ),
        field(
            io.Float,
            "ramp",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            round=0.001,
            advanced=True,
            tooltip="Guidance at the last step as a multiple of the first; in between it goes evenly. 1: it stays.",
        ),
        field(
            io.Float,
            "guidance_start",
            default=1.0,
            **share,
            tooltip="Guidance acts from this time on. Time goes from 1 (noise) to 0 (image). Less is faster.",
        ),
        field(
            io.Float,
            "guidance_stop",
            default=0.0,
            **share,
            tooltip="Guidance acts until this time. Time goes from 1 (noise) to 0 (image). More is faster.",
        ),
        field(
            io.Combo,
            "rescale",
            options=[PER_IMAGE, WHOLE_BATCH],
            default=PER_IMAGE,
            advanced=True,
            tooltip="Over what rho measures contrast. With the whole batch, an image depends on its neighbors.",
        ),
    ]


def shift_field(default: float) -> Any:
    tip = f"More noise in the middle of the run, for larger images. Released: {default:g}."
    return field(
        io.Float, "shift", default=default, min=0.1, max=20.0, step=0.1, round=0.01, advanced=True, tooltip=tip
    )


def steps_field(default: int) -> Any:
    tip = f"More steps: finer and slower. Released: {default}."
    return field(io.Int, "steps", default=default, min=1, max=1000, tooltip=tip)


def run_fields(steps: int, guidance: float, shift: float) -> list[Any]:
    return [
        seed_field(
            "The noise. The same seed gives, but for rounding, the same image alone and as the first of a batch."
        ),
        steps_field(steps),
        guidance_field(guidance),
        field(
            io.Combo,
            "sampler",
            options=sampling.samplers(),
            default="ddpm",
            tooltip="ddpm is the released one. ddim adds no noise on its way; lcm is for models made for few steps.",
        ),
        field(
            io.Float,
            "denoise",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            round=0.001,
            tooltip="How much of the latent is drawn anew: 1 all of it, less keeps more of what was encoded.",
        ),
        shift_field(shift),
        *guidance_fields(),
    ]


def to_guidance(
    guidance: float, rho: float, ramp: float, guidance_start: float, guidance_stop: float, rescale: str
) -> Guidance:
    """The settings of a node as the library's. Raises ValueError for an interval that ends before it begins."""
    return Guidance(
        scale=guidance if ramp == 1 else (guidance, guidance * ramp),
        rho=rho,
        t_start=guidance_start,
        t_stop=guidance_stop,
        per_image=rescale == PER_IMAGE,
    )


class CascadeSampleStageC(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSampleStageC",
            display_name="Sample Stage C (Stable Cascade)",
            category=SAMPLING,
            description="From the prompt to the small latent, which decides what is in the image.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C."),
                *conditioning_fields(),
                field(io.Latent, "latent", tooltip="Where to start: an empty latent, or an encoded image."),
                *run_fields(steps=20, guidance=4.0, shift=2.0),
                field(
                    io.Combo,
                    "noising",
                    options=[CORRECT, AS_RELEASED],
                    default=CORRECT,
                    optional=True,
                    advanced=True,
                    tooltip="How an image is noised when denoise is below 1. correct: as much as the sampler expects. "
                    "as released: less (with shift 1), so that more of the image stays and the result is smoother.",
                ),
            ],
            outputs=[io.Latent.Output("stage_c", display_name="stage_c", tooltip="For the sampler of Stage B.")],
            search_aliases=["ksampler", "prior"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: Any,
        seed: int,
        sampler: str,
        noising: str = CORRECT,
        **settings: Any,
    ) -> io.NodeOutput:
        checks.model(model, "Stage C")
        samples = checks.latents(latent, "Stage C")
        level = None
        if noising == AS_RELEASED and settings["denoise"] < 1:
            level = float(sampling.released_sigmas(1, 1.0, t_start=settings["denoise"])[0])
        result = _sample(model, (positive, negative), latent, samples, seed, "stage_c", sampler, settings, level)
        checks.finite(result["samples"], "Stage C")
        return io.NodeOutput(result)


class CascadeSampleStageB(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSampleStageB",
            display_name="Sample Stage B (Stable Cascade)",
            category=SAMPLING,
            description="From Stage C's small latent to the large one, which Stage A turns into the image.",
            inputs=[
                field(io.Model, "model", tooltip="Stage B."),
                *conditioning_fields(),
                field(io.Latent, "stage_c", tooltip="What to draw: Stage C's result, or an encoded image."),
                *run_fields(steps=10, guidance=1.1, shift=1.0),
                field(
                    io.Latent,
                    "latent",
                    optional=True,
                    tooltip="Where to start: Stage B's empty latent (of the image's exact size), or an image that "
                    "Stage A encoded. Without it, an empty one of the size of Stage C's latent.",
                ),
                field(
                    io.Combo,
                    "tiling",
                    options=[NEVER, AUTO, ALWAYS],
                    default=NEVER,
                    optional=True,
                    advanced=True,
                    tooltip="Draw in overlapping tiles, each with its part of Stage C's latent: for large images. "
                    "auto: when a step on the whole would not fit into memory.",
                ),
                field(
                    io.Int,
                    "tile_size",
                    default=1024,
                    min=256,
                    max=8192,
                    step=64,
                    optional=True,
                    advanced=True,
                    tooltip="Side of a tile in pixels. 1024 is what Stage B was trained at.",
                ),
                field(
                    io.Int,
                    "tile_overlap",
                    default=256,
                    min=64,
                    max=4096,
                    step=64,
                    optional=True,
                    advanced=True,
                    tooltip="How far tiles overlap, in pixels. More: smoother, and slower.",
                ),
            ],
            outputs=[io.Latent.Output("stage_b", display_name="stage_b", tooltip="For decoding with Stage A.")],
            search_aliases=["ksampler", "decoder"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        stage_c: Any,
        seed: int,
        sampler: str,
        latent: Any = None,
        tiling: str = NEVER,
        tile_size: int = 1024,
        tile_overlap: int = 256,
        **settings: Any,
    ) -> io.NodeOutput:
        checks.model(model, "Stage B")
        small = checks.latents(stage_c, "Stage C")
        latent = sampling.start_of_stage_b(stage_c, small) if latent is None else latent
        samples = sampling.repeated(checks.latents(latent, "Stage B"), len(small))
        if warning := compression_warning(small.shape, samples.shape):
            checks.warn(warning)
        if tiling == ALWAYS or (tiling == AUTO and tiles.too_large(model, samples)):
            model = tiles.tiled(model, tile_size, tile_overlap)
        conditionings = sampling.with_prior(positive, small), sampling.with_prior(negative, None)
        result = _sample(model, conditionings, latent, samples, seed, "stage_b", sampler, settings)
        checks.finite(result["samples"], "Stage B")
        return io.NodeOutput(result)


def _sample(
    model: Any,
    conditionings: tuple[Any, Any],
    latent: Any,
    samples: torch.Tensor,
    seed: int,
    stream: str,
    sampler: str,
    settings: dict[str, Any],
    noised_to: float | None = None,
) -> dict[str, Any]:
    """`settings` are the inputs of `run_fields` that are left: steps, denoise, shift, and those of `to_guidance`."""
    steps, denoise, shift = (settings.pop(name) for name in ("steps", "denoise", "shift"))
    sigmas = sampling.released_sigmas(steps, shift, t_start=denoise)
    guider = sampling.guider(sampling.shifted(model, shift), *conditionings, to_guidance(**settings))
    return sampling.run(guider, latent, samples, seed, stream, sampler, sigmas, noised_to)


class CascadeSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        time = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001}
        return schema(
            node_id="CascadeSigmas",
            display_name="Sigmas (Stable Cascade)",
            category=CUSTOM_SAMPLING,
            description="The released noise levels, for any number of steps. Shift: 2 for Stage C, 1 for Stage B.",
            inputs=[
                steps_field(20),
                shift_field(2.0),
                field(io.Float, "t_start", default=1.0, **time, tooltip="The time to start from: 1 is noise."),
                field(io.Float, "t_end", default=0.0, **time, tooltip="The time towards which the steps go."),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas", tooltip="For SamplerCustomAdvanced.")],
            search_aliases=["scheduler"],
        )

    @classmethod
    def execute(cls, steps: int, shift: float, t_start: float, t_end: float) -> io.NodeOutput:
        return io.NodeOutput(sampling.released_sigmas(steps, shift, t_start, t_end))


class CascadeGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeGuider",
            display_name="Guider (Stable Cascade)",
            category=CUSTOM_SAMPLING,
            description="The released guidance for SamplerCustomAdvanced: with rho, an interval and a ramp.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C or Stage B."),
                *conditioning_fields(),
                guidance_field(4.0),
                *guidance_fields(),
            ],
            outputs=[io.Guider.Output("guider", display_name="guider", tooltip="For SamplerCustomAdvanced.")],
            search_aliases=["cfg"],
        )

    @classmethod
    def execute(cls, model: Any, positive: Any, negative: Any, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(sampling.guider(model, positive, negative, to_guidance(**settings)))


NODES = [CascadeSampleStageC, CascadeSampleStageB, CascadeSigmas, CascadeGuider]
