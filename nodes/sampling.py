"""Sampling: a node for each stage with the released settings, and their pieces for custom sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..cascade.diffusion import Guidance, SamplingSettings
from ..cascade.pipelines import PRESETS, STAGE_B_SETTINGS, STAGE_C_SETTINGS, Tiles
from .host import adapters, folders, sampling
from .host.tiling import too_large
from .types import (
    CUSTOM_SAMPLING,
    PERCENT,
    RELEASED_OPTIONS,
    SAMPLING,
    SamplingOptions,
    SamplingOptionsType,
    cfg_field,
    conditioning_fields,
    field,
    options_field,
    run_fields,
    schema,
    shift_field,
    steps_field,
)

PER_IMAGE, WHOLE_BATCH = "per image", "whole batch (as released)"
MATCHES_DENOISE, AS_RELEASED = "matches denoise", "as released"
AUTO, NEVER, ALWAYS = "auto", "never", "always"


def options_fields() -> list[Any]:
    """The inputs of the node Sampling Options."""
    return [
        field(
            io.Float,
            "cfg_rescale",
            default=RELEASED_OPTIONS.guidance.cfg_rescale,
            **PERCENT,
            tooltip="Reduces the contrast that a high cfg adds: 0 not at all, 1 fully. Released: 0.7 (called rho).",
        ),
        field(
            io.Float,
            "cfg_end",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="cfg at the end of sampling; from start to end it changes evenly. 0: the same as cfg. Released: 0.",
        ),
        field(
            io.Float,
            "start_percent",
            default=0.0,
            **PERCENT,
            tooltip="From where on cfg acts: 0 is the start of sampling, 1 the end. Before it, steps are faster and "
            "ignore the negative prompt. Released: 0.",
        ),
        field(
            io.Float,
            "end_percent",
            default=1.0,
            **PERCENT,
            tooltip="Up to where cfg acts: 0 is the start of sampling, 1 the end. After it, steps are faster and "
            "ignore the negative prompt. Released: 1.",
        ),
        field(
            io.Combo,
            "rescale_scope",
            options=[PER_IMAGE, WHOLE_BATCH],
            default=PER_IMAGE,
            tooltip="Where cfg_rescale measures contrast. With the whole batch, an image depends on the others in it.",
        ),
        field(
            io.Combo,
            "img2img_noise_level",
            options=[MATCHES_DENOISE, AS_RELEASED],
            default=MATCHES_DENOISE,
            tooltip="Only Sample Stage C. Noise added to latent_image when denoise is below 1. as released: less than "
            "the sampler expects (that of shift 1), which keeps more of the image and makes the result smoother.",
        ),
        field(
            io.Int,
            "tile_size",
            default=RELEASED_OPTIONS.tiles.tile_size,
            min=256,
            max=8192,
            step=64,
            tooltip="Only Sample Stage B with tiling. Side of a tile in pixels. Trained: 1024.",
        ),
        field(
            io.Int,
            "overlap",
            default=RELEASED_OPTIONS.tiles.overlap,
            min=64,
            max=4096,
            step=64,
            tooltip="Only Sample Stage B with tiling. Pixels by which neighboring tiles overlap, at most half of "
            "tile_size. More: smoother seams, and slower.",
        ),
    ]


class CascadeSamplingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSamplingOptions",
            display_name="Sampling Options (Stable Cascade)",
            category=SAMPLING,
            description="What is rarely changed in Sample Stage C, Sample Stage B and Guider. The defaults are the "
            "released settings.",
            inputs=options_fields(),
            outputs=[
                SamplingOptionsType.Output(
                    "options", display_name="options", tooltip="For Sample Stage C, Sample Stage B and Guider."
                )
            ],
            search_aliases=["rescale cfg", "cfg interval", "tile size", "overlap", "rho"],
        )

    @classmethod
    def execute(
        cls,
        cfg_rescale: float,
        cfg_end: float,
        start_percent: float,
        end_percent: float,
        rescale_scope: str,
        img2img_noise_level: str,
        tile_size: int,
        overlap: int,
    ) -> io.NodeOutput:
        guidance = Guidance(
            cfg_rescale=cfg_rescale,
            cfg_end=cfg_end or None,
            start_percent=start_percent,
            end_percent=end_percent,
            per_image=rescale_scope == PER_IMAGE,
        )
        tiles = Tiles(tile_size, overlap)
        return io.NodeOutput(SamplingOptions(guidance, img2img_noise_level == AS_RELEASED, tiles))


class CascadeSampleStageC(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSampleStageC",
            display_name="Sample Stage C (Stable Cascade)",
            category=SAMPLING,
            description="Samples Stage C's small latent from the prompt. It decides what is in the image.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C."),
                *conditioning_fields(),
                field(io.Latent, "latent_image", tooltip="Where to start: an empty latent, or an encoded image."),
                *run_fields(STAGE_C_SETTINGS, sampling.sampler_names()),
                options_field(),
            ],
            outputs=[io.Latent.Output("stage_c", display_name="stage_c", tooltip="For the sampler of Stage B.")],
            search_aliases=["ksampler", "sampler", "sample", "prior", "text to image", "wuerstchen"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        denoise: float,
        shift: float,
        options: SamplingOptions = RELEASED_OPTIONS,
    ) -> io.NodeOutput:
        settings = options.settings("stage_c", denoise, cfg=cfg, steps=steps, sampler_name=sampler_name, shift=shift)
        return io.NodeOutput(
            sampling.sample_stage_c(model, positive, negative, latent_image, seed, settings, options.as_released)
        )


class CascadeSampleStageB(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSampleStageB",
            display_name="Sample Stage B (Stable Cascade)",
            category=SAMPLING,
            description="Samples Stage B's large latent from Stage C's small one. Stage A decodes it to the image.",
            inputs=[
                field(io.Model, "model", tooltip="Stage B."),
                *conditioning_fields(),
                field(
                    io.Latent,
                    "stage_c",
                    tooltip="What to generate the image from: Stage C's result, or an encoded image.",
                ),
                *run_fields(STAGE_B_SETTINGS, sampling.sampler_names()),
                field(
                    io.Latent,
                    "latent_image",
                    optional=True,
                    tooltip="Where to start: Stage B's empty latent (of the image's exact size), or an image that "
                    "Stage A encoded. Not connected: an empty latent of the size that belongs to stage_c.",
                ),
                field(
                    io.Combo,
                    "tiling",
                    options=[NEVER, AUTO, ALWAYS],
                    default=NEVER,
                    optional=True,
                    tooltip="Sample in overlapping tiles, each with its part of Stage C's latent: for large images. "
                    "auto: only if a step on the whole image would not fit into memory. options has the tiles' size.",
                ),
                options_field(),
            ],
            outputs=[io.Latent.Output("stage_b", display_name="stage_b", tooltip="For decoding with Stage A.")],
            search_aliases=["ksampler", "sampler", "sample", "decoder", "tiled", "wuerstchen"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        stage_c: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        denoise: float,
        shift: float,
        latent_image: Any = None,
        tiling: str = NEVER,
        options: SamplingOptions = RELEASED_OPTIONS,
    ) -> io.NodeOutput:
        settings = options.settings("stage_b", denoise, cfg=cfg, steps=steps, sampler_name=sampler_name, shift=shift)

        def tiles(samples: Tensor) -> Tiles | None:
            wanted = tiling == ALWAYS or (tiling == AUTO and too_large(model, samples))
            return options.tiles if wanted else None

        return io.NodeOutput(
            sampling.sample_stage_b(model, positive, negative, stage_c, latent_image, seed, settings, tiles)
        )


class CascadeSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSigmas",
            display_name="Sigmas (Stable Cascade)",
            category=CUSTOM_SAMPLING,
            description="The released noise levels, for any number of steps. shift: 2 for Stage C, 1 for Stage B.",
            inputs=[
                steps_field(STAGE_C_SETTINGS.steps),
                shift_field(STAGE_C_SETTINGS.shift),
                field(
                    io.Float,
                    "start_percent",
                    default=0.0,
                    **PERCENT,
                    tooltip="Where the steps begin: 0 is full noise. For image to image: 1 - denoise.",
                ),
                field(
                    io.Float,
                    "end_percent",
                    default=1.0,
                    **PERCENT,
                    tooltip="Where the steps end: 1 is the finished image. The last noise level is 0 in any case.",
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas", tooltip="For SamplerCustomAdvanced.")],
            search_aliases=["scheduler", "noise schedule", "basic scheduler"],
        )

    @classmethod
    def execute(cls, steps: int, shift: float, start_percent: float, end_percent: float) -> io.NodeOutput:
        settings = SamplingSettings(steps=steps, shift=shift, start_percent=start_percent, end_percent=end_percent)
        return io.NodeOutput(sampling.sigmas(settings))


class CascadeGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeGuider",
            display_name="Guider (Stable Cascade)",
            category=CUSTOM_SAMPLING,
            description="The released guidance for SamplerCustomAdvanced: with rescale, an interval and another cfg "
            "at the end.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C or Stage B."),
                *conditioning_fields(),
                cfg_field(STAGE_C_SETTINGS.guidance.cfg),
                options_field(),
            ],
            outputs=[io.Guider.Output("guider", display_name="guider", tooltip="For SamplerCustomAdvanced.")],
            search_aliases=["cfg", "cfg guider", "rescale cfg"],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, cfg: float, options: SamplingOptions = RELEASED_OPTIONS
    ) -> io.NodeOutput:
        return io.NodeOutput(sampling.guider(model, positive, negative, options.with_cfg(cfg)))


class CascadePreset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        lora_tip = "For turbo: a LoRA that was trained to need few steps. The included one is for the tiny cascade."
        return schema(
            node_id="CascadePreset",
            display_name="Preset (Stable Cascade)",
            category=SAMPLING,
            description="Sets both samplers at once: released (20 + 10 steps), fast (fewer steps, nearly as good), or "
            "turbo (4 + 2 steps with LoRAs made for them).",
            inputs=[
                field(
                    io.Combo,
                    "preset",
                    options=list(PRESETS),
                    default="turbo",
                    tooltip="Used in place of steps, cfg, sampler_name and shift of the samplers that options goes to. "
                    "turbo ignores the negative prompt.",
                ),
                field(io.Model, "stage_c", tooltip="Stage C."),
                field(io.Model, "stage_b", tooltip="Stage B."),
                folders.file_field("turbo_stage_c", lora_tip, name="lora_stage_c"),
                folders.file_field("turbo_stage_b", lora_tip, name="lora_stage_b"),
                options_field(),
            ],
            outputs=[
                io.Model.Output("stage_c_out", display_name="stage_c", tooltip="For Sample Stage C."),
                io.Model.Output("stage_b_out", display_name="stage_b", tooltip="For Sample Stage B."),
                SamplingOptionsType.Output("options_out", display_name="options", tooltip="For both samplers."),
            ],
            search_aliases=["few steps", "turbo", "fast", "lightning", "lcm", "hyper", "preset"],
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        stage_c: Any,
        stage_b: Any,
        lora_stage_c: str,
        lora_stage_b: str,
        options: SamplingOptions = RELEASED_OPTIONS,
    ) -> io.NodeOutput:
        chosen = PRESETS[preset]
        if chosen.few_steps:
            stage_c = adapters.few_steps(stage_c, "Stage C", folders.find("turbo_stage_c", lora_stage_c))
            stage_b = adapters.few_steps(stage_b, "Stage B", folders.find("turbo_stage_b", lora_stage_b))
        return io.NodeOutput(stage_c, stage_b, replace(options, preset=chosen))


NODES = [CascadeSampleStageC, CascadeSampleStageB, CascadePreset, CascadeSamplingOptions, CascadeSigmas, CascadeGuider]
