"""Prompts to conditionings."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.conditioning import check_prompt
from ..cascade.errors import MissingPart
from .types import CONDITIONING, field, schema


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
        if clip is None:
            raise MissingPart("There is no text encoder: the checkpoint that was loaded has none.")
        for text in (positive, negative):
            check_prompt(text)
        return io.NodeOutput(*(clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (positive, negative)))


NODES = [CascadeTextEncode]
