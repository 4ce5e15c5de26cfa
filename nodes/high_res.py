"""High-res guides: loading them, applying them to a model, and both passes of a large image in one node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..cascade.pipelines import STAGE_C_SETTINGS
from .host import folders, high_res, sampling
from .types import (
    HIGH_RES,
    LOADERS,
    PERCENT,
    RELEASED_OPTIONS,
    HighResGuideType,
    SamplingOptions,
    conditioning_fields,
    field,
    options_field,
    run_fields,
    schema,
    seed_field,
)


def strength_fields() -> list[Any]:
    return [
        field(
            io.Float,
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.01,
            round=0.001,
            tooltip="How strongly the guides act. 0: the same image as without them. Released: 1.",
        ),
        field(
            io.Float,
            "start_percent",
            default=0.0,
            **PERCENT,
            tooltip="From where on the guides act: 0 is the start of sampling, 1 the end. Released: 0.",
        ),
        field(
            io.Float,
            "end_percent",
            default=1.0,
            **PERCENT,
            tooltip="Up to where the guides act: 0 is the start of sampling, 1 the end. Released: 1.",
        ),
    ]


class CascadeLoadHighResGuide(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        choices = folders.high_res_choices()
        return schema(
            node_id="CascadeLoadHighResGuide",
            display_name="Load High-Res Guide (Stable Cascade)",
            category=LOADERS,
            description="Loads the guides for large images: UltraPixel's file for Stage C 3.6B, your own, or the tiny "
            "cascade's.",
            inputs=[
                field(
                    io.Combo,
                    "guide_name",
                    options=choices,
                    default=choices[0],
                    tooltip="From ComfyUI's model_patches folder. The tiny one fits the tiny cascade only.",
                ),
            ],
            outputs=[
                HighResGuideType.Output(
                    "guide", display_name="guide", tooltip="For Sample High-Res and Apply High-Res Guide."
                ),
                io.String.Output("report", display_name="report", tooltip="For which Stage C it is."),
            ],
            search_aliases=["ultrapixel", "4k", "high resolution", "upscale"],
        )

    @classmethod
    def fingerprint_inputs(cls, guide_name: str, **_: Any) -> Any:
        return folders.stamp(folders.find_high_res(guide_name))

    @classmethod
    def execute(cls, guide_name: str) -> io.NodeOutput:
        return io.NodeOutput(*high_res.load_guide(folders.find_high_res(guide_name)))


class CascadeSampleHighRes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSampleHighRes",
            display_name="Sample High-Res (Stable Cascade)",
            category=HIGH_RES,
            description="Samples a large image with Stage C in two passes: a small image, then the large one, which "
            "guides hold to the small one. Takes the place of Sample Stage C.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C."),
                field(HighResGuideType, "guide", tooltip="The guides that were made for this Stage C."),
                *conditioning_fields(),
                field(io.Latent, "latent_image", tooltip="Where to start: an empty latent, or an encoded image."),
                *run_fields(replace(STAGE_C_SETTINGS, shift=1.0), sampling.sampler_names()),
                field(
                    io.Int,
                    "first_size",
                    default=1024,
                    min=64,
                    max=1344,
                    step=32,
                    tooltip="Size of the small image in pixels, as the side of a square. Released: 1024. Tiny cascade: "
                    "256.",
                ),
                *strength_fields(),
                field(
                    io.Latent,
                    "small_latent",
                    optional=True,
                    tooltip="An encoded image of about first_size to follow, for image to image. Not connected: the "
                    "first pass makes one.",
                ),
                options_field(),
            ],
            outputs=[
                io.Latent.Output("stage_c", display_name="stage_c", tooltip="For the sampler of Stage B."),
                io.Latent.Output(
                    "small", display_name="small", tooltip="The small image's latent, for Preview Decode or Stage B."
                ),
            ],
            search_aliases=["ultrapixel", "4k", "high resolution", "large image", "ksampler", "hires fix"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        guide: high_res.Guide,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        denoise: float,
        shift: float,
        first_size: int,
        strength: float,
        start_percent: float,
        end_percent: float,
        small_latent: Any = None,
        options: SamplingOptions = RELEASED_OPTIONS,
    ) -> io.NodeOutput:
        settings = options.settings("stage_c", denoise, cfg=cfg, steps=steps, sampler_name=sampler_name, shift=shift)
        run = high_res.TwoPasses(
            model=model,
            guide=guide,
            positive=positive,
            negative=negative,
            settings=settings,
            strength=high_res.Strength(strength, start_percent, end_percent),
            resolution=first_size,
        )
        return io.NodeOutput(*run(latent_image, small_latent, seed))


class CascadeApplyHighResGuide(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeApplyHighResGuide",
            display_name="Apply High-Res Guide (Stable Cascade)",
            category=HIGH_RES,
            description="A model that holds a large image to a small one, for any sampler, ComfyUI's too. Use it for "
            "the large image only.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C, with its LoRAs."),
                field(HighResGuideType, "guide", tooltip="The guides that were made for this Stage C."),
                field(io.Conditioning, "positive", tooltip="The prompt of the small image."),
                field(
                    io.Latent,
                    "small_latent",
                    tooltip="The finished small image: of a sampler, or of Encode Image. At most 1024 positions, about "
                    "1344 x 1344 pixels.",
                ),
                seed_field("Seed of the little noise with which the small image is read."),
                *strength_fields(),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="For the sampler of the large image.")],
            search_aliases=["ultrapixel", "4k", "high resolution", "model patch"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        guide: high_res.Guide,
        positive: Any,
        small_latent: Any,
        seed: int,
        strength: float,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        acting = high_res.Strength(strength, start_percent, end_percent)
        features = high_res.features_of(model, positive, small_latent, guide, seed)
        return io.NodeOutput(high_res.guided(model, guide, features, acting))


NODES = [CascadeLoadHighResGuide, CascadeSampleHighRes, CascadeApplyHighResGuide]
