"""Prompts to conditionings."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.editing import box_mask
from .host import prompts, regions
from .types import CONDITIONING, PERCENT, field, schema


class CascadeTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeTextEncode",
            display_name="Text Encode (Stable Cascade)",
            category=CONDITIONING,
            description="Encodes what the image should show and what it should not show, for Stage C and for Stage B.",
            inputs=[
                field(io.Clip, "clip", tooltip="The text encoder."),
                field(
                    io.String,
                    "positive",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a large red circle on a blue background",
                    tooltip="What the image should show. (text:1.2) gives text more weight; embedding:name adds an "
                    "embedding file.",
                ),
                field(
                    io.String,
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the image should not show. Trained: empty.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive_out", display_name="positive", tooltip="For positive of the samplers."
                ),
                io.Conditioning.Output(
                    "negative_out", display_name="negative", tooltip="For negative of the samplers."
                ),
            ],
            search_aliases=["prompt", "clip text encode", "text prompt", "negative prompt", "wuerstchen"],
        )

    @classmethod
    def execute(cls, clip: Any, positive: str, negative: str) -> io.NodeOutput:
        return io.NodeOutput(*(prompts.encoded(clip, text) for text in (positive, negative)))


class CascadeRegionalPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeRegionalPrompt",
            display_name="Regional Prompt (Stable Cascade)",
            category=CONDITIONING,
            description="Adds a prompt for a part of the image: inside a mask, or inside a box. Chain several, one for "
            "each part; all are read in one run.",
            inputs=[
                field(io.Clip, "clip", tooltip="The text encoder."),
                field(
                    io.Conditioning,
                    "positive",
                    tooltip="The prompt of the whole image, or what another Regional Prompt gives.",
                ),
                field(
                    io.String,
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What this part of the image should show.",
                ),
                *(
                    field(io.Float, side, default=default, **PERCENT, tooltip=tip)
                    for side, default, tip in (
                        ("left", 0.0, "Left edge of the box: 0 is the left of the image, 1 its right."),
                        ("top", 0.0, "Top edge of the box: 0 is the top of the image, 1 its bottom."),
                        ("right", 0.5, "Right edge of the box: 0 is the left of the image, 1 its right."),
                        ("bottom", 1.0, "Bottom edge of the box: 0 is the top of the image, 1 its bottom."),
                    )
                ),
                field(
                    io.Float,
                    "strength",
                    default=0.8,
                    **PERCENT,
                    tooltip="How much this part follows text; the rest follows the prompt of the whole image. 0: off.",
                ),
                field(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="White (1): where text acts, in place of the box. Of any size; gray edges blend.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive_out", display_name="positive", tooltip="For positive of Stage C's sampler, ComfyUI's too."
                )
            ],
            search_aliases=["area", "attention couple", "regional", "mask prompt", "set area", "gligen", "layout"],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        positive: Any,
        text: str,
        left: float,
        top: float,
        right: float,
        bottom: float,
        strength: float,
        mask: Any = None,
    ) -> io.NodeOutput:
        mask = box_mask((left, top, right, bottom)) if mask is None else mask
        return io.NodeOutput(regions.with_region(clip, positive, text, mask, strength))


NODES = [CascadeTextEncode, CascadeRegionalPrompt]
