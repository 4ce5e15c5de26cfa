"""The look and the content of reference images, without training."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.editing import ControlSteps
from .host import folders
from .host import style as host_style
from .types import CUSTOM_SAMPLING, PERCENT, STYLE, field, schema

PUBLISHED = ControlSteps()
SAMPLERS = ["ddpm", "ddim"]


def weight_field(tip: str) -> Any:
    return field(io.Float, "weight", default=1.0, **PERCENT, tooltip=f"{tip} 0: the same image as without it.")


def interval_fields() -> list[Any]:
    start, end = "From where on it acts: 0 is the start of sampling.", "Up to where it acts: 1 is the end of sampling."
    return [
        field(io.Float, "start_percent", default=0.0, **PERCENT, tooltip=start),
        field(io.Float, "end_percent", default=1.0, **PERCENT, tooltip=end),
    ]


def content_fields() -> list[Any]:
    return [
        field(io.Image, "content", optional=True, tooltip="The image whose content the new images get."),
        field(
            io.Mask,
            "content_mask",
            optional=True,
            tooltip="What of content counts: white does, black does not. Any size; scaled to content.",
        ),
    ]


def model_output() -> Any:
    return io.Model.Output("model_out", display_name="model", tooltip="For Sample Stage C, KSampler, or a guider.")


class CascadeStyleReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeStyleReference",
            display_name="Style Reference (Stable Cascade)",
            category=STYLE,
            description="New images get the look of one image, what another one shows, or both, without training. The "
            "prompt says the rest.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C."),
                field(io.ClipVision, "clip_vision", tooltip="The image encoder."),
                weight_field("How strongly the images follow style and content."),
                *interval_fields(),
                field(
                    io.Image,
                    "style",
                    optional=True,
                    tooltip="The image whose look the new images get. A batch: one for each.",
                ),
                *content_fields(),
            ],
            outputs=[model_output()],
            search_aliases=["rb-modulation", "style transfer", "ipadapter style", "reference", "content"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip_vision: Any,
        weight: float,
        start_percent: float,
        end_percent: float,
        style: Any = None,
        content: Any = None,
        content_mask: Any = None,
    ) -> io.NodeOutput:
        shown = host_style.Shown.of(style, content, content_mask)
        return io.NodeOutput(host_style.referenced(model, clip_vision, shown, weight, (start_percent, end_percent)))


class CascadeStyleControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        strength = {"min": 0.0, "max": 100.0, "step": 0.05, "round": 0.001}
        choices = folders.descriptor_choices()
        return schema(
            node_id="CascadeStyleControl",
            display_name="Style Control (Stable Cascade)",
            category=CUSTOM_SAMPLING,
            description="A sampler for SamplerCustomAdvanced that corrects each step until it looks like style. Closer "
            "than Style Reference alone, and slower; use both.",
            inputs=[
                field(io.Vae, "encoder", tooltip="Encoder and previewer."),
                field(io.ClipVision, "clip_vision", tooltip="The image encoder, which sees the style."),
                field(io.Image, "style", tooltip="The image whose look the new images get."),
                field(
                    io.Combo,
                    "sampler_name",
                    options=SAMPLERS,
                    default=SAMPLERS[0],
                    tooltip="ddpm adds noise between steps, ddim does not. Published: either.",
                ),
                field(
                    io.Int,
                    "style_steps",
                    default=PUBLISHED.steps,
                    min=0,
                    max=100,
                    tooltip="Corrections in each step. More are closer and slower. Published: 3.",
                ),
                field(
                    io.Float,
                    "learning_rate",
                    default=PUBLISHED.learning_rate,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="How large a correction is; it falls to 0 over the run. Published: 0.1.",
                ),
                field(
                    io.Float, "style_weight", default=1.0, **strength, tooltip="How much the look counts. Published: 1."
                ),
                field(
                    io.Float,
                    "content_weight",
                    default=1.0,
                    **strength,
                    tooltip="How much the content counts. Published: 1.",
                ),
                field(
                    io.Float,
                    "pull",
                    default=PUBLISHED.pull,
                    **strength,
                    tooltip="How much the image without corrections counts. Higher stays closer to the prompt.",
                ),
                field(
                    io.Float,
                    "end_percent",
                    default=PUBLISHED.until,
                    **PERCENT,
                    tooltip="Up to where steps are corrected: 1 is all of them.",
                ),
                field(
                    io.Combo,
                    "descriptor",
                    options=choices,
                    default=choices[0],
                    tooltip="What compares style and content: the image encoder, or CSD's checkpoint.pth in "
                    "clip_vision, which tells the two apart.",
                ),
                *content_fields(),
            ],
            outputs=[io.Sampler.Output("sampler", display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
            search_aliases=["rb-modulation", "stochastic optimal control", "csd", "style transfer"],
        )

    @classmethod
    def fingerprint_inputs(cls, descriptor: str, **_: Any) -> Any:
        path = folders.find_descriptor(descriptor)
        return None if path is None else folders.stamp(path)

    @classmethod
    def execute(
        cls,
        encoder: Any,
        clip_vision: Any,
        style: Any,
        sampler_name: str,
        style_steps: int,
        learning_rate: float,
        style_weight: float,
        content_weight: float,
        pull: float,
        end_percent: float,
        descriptor: str,
        content: Any = None,
        content_mask: Any = None,
    ) -> io.NodeOutput:
        path = folders.find_descriptor(descriptor)
        net = host_style.image_encoder(clip_vision) if path is None else host_style.load_descriptor(path)
        settings = ControlSteps(
            steps=style_steps,
            learning_rate=learning_rate,
            style=style_weight,
            content=content_weight,
            pull=pull,
            until=end_percent,
        )
        shown = host_style.Shown.of(style, content, content_mask)
        return io.NodeOutput(host_style.steered_sampler(shown, encoder, net, settings, sampler_name))


class CascadeStyleAligned(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeStyleAligned",
            display_name="Style Aligned (Stable Cascade)",
            category=STYLE,
            description="All images of a batch get the look of its first, which stays as it is.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C."),
                weight_field("How much of the first image's look the others take over."),
                *interval_fields(),
            ],
            outputs=[model_output()],
            search_aliases=["shared attention", "consistent style", "visual style prompting", "batch style"],
        )

    @classmethod
    def execute(cls, model: Any, weight: float, start_percent: float, end_percent: float) -> io.NodeOutput:
        return io.NodeOutput(host_style.aligned(model, weight, (start_percent, end_percent)))


NODES = [CascadeStyleReference, CascadeStyleControl, CascadeStyleAligned]
