"""The masked part of an image at full resolution, and back."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.errors import CascadeError
from ..cascade.images import Crop, crop_to_mask
from .host import imaging
from .types import CONTROL, field, schema

STITCH = io.Custom("CASCADE_STITCH")


class CascadeCropToMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"min": 64, "max": 8192, "step": 8}
        return schema(
            node_id="CascadeCropToMask",
            display_name="Crop to Mask (Stable Cascade)",
            category=CONTROL,
            description="Crops an image around the mask and scales the crop to the size the models were trained at; "
            "Stitch puts it back. So a small part of a large image gets full detail.",
            inputs=[
                field(io.Image, "image", tooltip="The whole image."),
                field(io.Mask, "mask", tooltip="White (1): what to generate again. Any size."),
                field(io.Int, "width", default=1024, **side, tooltip="Width of the crop in pixels. Tiny cascade: 256."),
                field(
                    io.Int, "height", default=1024, **side, tooltip="Height of the crop in pixels. Tiny cascade: 256."
                ),
                field(
                    io.Float,
                    "context",
                    default=0.5,
                    min=0.0,
                    max=8.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How much of the image around the mask to keep, as a fraction of the mask's longer side.",
                ),
                field(
                    io.Int,
                    "feathering",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Width in pixels of the soft edge around the mask, where the result fades into the image.",
                ),
            ],
            outputs=[
                io.Image.Output("image_out", display_name="image", tooltip="The crop."),
                io.Mask.Output("mask_out", display_name="mask", tooltip="The same crop of the mask."),
                STITCH.Output(
                    "stitch", display_name="stitch", tooltip="For Stitch: the whole image, and where the crop was."
                ),
            ],
            search_aliases=["crop", "inpaint crop", "mask", "detailer"],
        )

    @classmethod
    def execute(cls, image: Any, mask: Any, width: int, height: int, context: float, feathering: int) -> io.NodeOutput:
        images = imaging.from_image(image)
        masks = imaging.masks_over(mask, images, "Crop to Mask (Stable Cascade)")
        crop = crop_to_mask(images, masks, width=width, height=height, context=context, feather=feathering)
        return io.NodeOutput(imaging.to_image(crop.images), crop.mask[:, 0], crop)


class CascadeStitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeStitch",
            display_name="Stitch (Stable Cascade)",
            category=CONTROL,
            description="Puts a crop back into its image. Outside the mask no pixel changes.",
            inputs=[
                field(io.Image, "image", tooltip="The changed crop, of any size."),
                field(STITCH, "stitch", tooltip="From Crop to Mask."),
            ],
            outputs=[io.Image.Output("image_out", display_name="image", tooltip="The whole image.")],
            search_aliases=["stitch", "paste", "composite", "uncrop"],
        )

    @classmethod
    def execute(cls, image: Any, stitch: Crop) -> io.NodeOutput:
        images = imaging.from_image(image)
        if 1 < len(stitch.whole) != len(images) > 1:
            raise CascadeError(
                f"Stitch (Stable Cascade): {len(images)} crops for {len(stitch.whole)} images. Connect one for each "
                f"image."
            )
        return io.NodeOutput(imaging.to_image(stitch.stitch(images)))


NODES = [CascadeCropToMask, CascadeStitch]
