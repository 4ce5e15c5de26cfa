"""Image prompts: images that Stage C reads beside the text."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io

from ..cascade.editing import COMBINE
from ..cascade.errors import InvalidSettings
from .host import imaging, prompt_images
from .types import CONDITIONING, PERCENT, block_fields, block_weights, field, schema

MOST_INPUTS = 16


class CascadeImagePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        image = io.Image.Input("image", tooltip="An image, or a batch of them with one weight.")
        return schema(
            node_id="CascadeImagePrompt",
            display_name="Image Prompt (Stable Cascade)",
            category=CONDITIONING,
            description="Adds images to the prompt, or to the negative prompt: how much, where, in which part of the "
            "run and in which blocks Stage C sees them. Chain several, each with its own mask.",
            inputs=[
                field(io.ClipVision, "clip_vision", tooltip="The image encoder."),
                field(
                    io.Conditioning,
                    "conditioning",
                    tooltip="The prompt that the images are added to, or the negative prompt: images there are "
                    "avoided.",
                ),
                field(
                    io.Autogrow,
                    "images",
                    template=io.Autogrow.TemplatePrefix(image, prefix="image", min=1, max=MOST_INPUTS),
                    tooltip="The images; connecting one adds a place for the next.",
                ),
                field(
                    io.String,
                    "weights",
                    default="1",
                    tooltip="How much of each image is seen, in their order, such as 1, 0.5. 1: as trained; 0: "
                    "nothing; below 0: the opposite of it. Those not given are 1.",
                ),
                field(
                    io.Combo,
                    "combine",
                    options=list(COMBINE),
                    default="concat",
                    tooltip="concat: Stage C gets each of them. average: one embedding between them. subtract: the "
                    "first without what the others have.",
                ),
                field(
                    io.Float,
                    "strength",
                    default=1.0,
                    **PERCENT,
                    tooltip="How much of all of them is seen. 0: nothing, the image is that of the prompt alone.",
                ),
                field(io.Float, "start_percent", default=0.0, **PERCENT, tooltip="Where in the run they begin to act."),
                field(
                    io.Float,
                    "end_percent",
                    default=1.0,
                    **PERCENT,
                    tooltip="Where in the run they stop. Below 1 the prompt alone makes the detail.",
                ),
                *block_fields(),
                field(
                    io.Float,
                    "noise_augmentation",
                    default=0.0,
                    **PERCENT,
                    tooltip="Noise in what the image encoder sees: higher gives looser variations, 1 is noise alone.",
                ),
                field(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="White (1): where the images count. Of any size; gray edges blend. Not connected: "
                    "everywhere.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning_out",
                    display_name="conditioning",
                    tooltip="For positive or negative of Stage C's sampler, ComfyUI's too.",
                )
            ],
            search_aliases=["ipadapter", "ip-adapter", "image prompt", "style transfer", "unclip", "clip vision"],
        )

    @classmethod
    def execute(
        cls,
        clip_vision: Any,
        conditioning: Any,
        images: dict[str, Any],
        weights: str,
        combine: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        blocks: str,
        block_ranges: str,
        noise_augmentation: float,
        mask: Any = None,
    ) -> io.NodeOutput:
        given = [image for image in images.values() if image is not None]
        if not given:
            raise InvalidSettings("Image Prompt has no image: connect one.")
        seen = [imaging.encode_vision(clip_vision, imaging.from_image(image)) for image in given]
        made = prompt_images.with_images(
            conditioning,
            seen,
            _weights(weights, len(given)),
            combine,
            noise_augmentation,
            mask=mask,
            strength=strength,
            start_percent=start_percent,
            end_percent=end_percent,
            blocks=block_weights(blocks, block_ranges),
        )
        return io.NodeOutput(made)


def _weights(text: str, images: int) -> list[float]:
    """A weight for each image; those that are not given are 1."""
    try:
        found = [float(each) for each in text.split(",") if each.strip()]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)) or len(found) > images:
        raise InvalidSettings(
            f"Image Prompt: weights are numbers with commas between them, one for each of {images} images, such as "
            f"1, 0.5; these are {text!r}."
        )
    return found + [1.0] * (images - len(found))


NODES = [CascadeImagePrompt]
