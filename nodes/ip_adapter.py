"""Images beside the prompt, by an IP-Adapter."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.errors import MissingPart
from .host import folders, ip_adapter
from .types import CONDITIONING, PERCENT, block_fields, block_weights, field, schema


class CascadeIPAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeIPAdapter",
            display_name="IP-Adapter (Stable Cascade)",
            category=CONDITIONING,
            description="Lets Stage C follow an image beside the prompt: what it shows and how it looks. Needs an "
            "IP-Adapter that was trained for this Stage C.",
            inputs=[
                folders.file_field(
                    "ip_adapter",
                    "From ComfyUI's model_patches folder. The tiny one fits the tiny cascade only.",
                    "ip_adapter_name",
                ),
                field(
                    io.Model, "model", tooltip="Stage C. For several images connect one of these nodes after the other."
                ),
                field(io.ClipVision, "clip_vision", tooltip="The image encoder that the adapter was trained with."),
                field(io.Image, "image", tooltip="What to follow. All images of a batch are followed together."),
                field(
                    io.Float,
                    "weight",
                    default=1.0,
                    min=-3.0,
                    max=3.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How strongly the image acts. Lower leaves more to the prompt. 1: as trained; 0: as if it "
                    "were not there.",
                ),
                field(
                    io.Float,
                    "start_percent",
                    default=0.0,
                    **PERCENT,
                    tooltip="From where on it acts: 0 is the start of sampling. Later leaves the composition to the "
                    "prompt.",
                ),
                field(
                    io.Float,
                    "end_percent",
                    default=1.0,
                    **PERCENT,
                    tooltip="Up to where it acts: 1 is the end of sampling. Earlier leaves fine detail to the prompt.",
                ),
                *block_fields(),
                field(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="Where the image counts; it is scaled to the new image. Not connected: everywhere.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="For Sample Stage C."),
            ],
            search_aliases=["ipadapter", "ip adapter", "image prompt", "reference image", "style transfer", "subject"],
        )

    @classmethod
    def fingerprint_inputs(cls, ip_adapter_name: str, **_: Any) -> Any:
        return folders.stamp(folders.find("ip_adapter", ip_adapter_name))

    @classmethod
    def execute(
        cls,
        ip_adapter_name: str,
        model: Any,
        clip_vision: Any,
        image: Any,
        weight: float,
        start_percent: float,
        end_percent: float,
        blocks: str,
        block_ranges: str,
        mask: Any = None,
    ) -> io.NodeOutput:
        if clip_vision is None:
            raise MissingPart("There is no image encoder: the checkpoint that was loaded has none.")
        path = folders.find("ip_adapter", ip_adapter_name)
        made = ip_adapter.with_images(
            model,
            clip_vision,
            image,
            path,
            mask=mask,
            weight=weight,
            blocks=block_weights(blocks, block_ranges),
            start_percent=start_percent,
            end_percent=end_percent,
        )
        return io.NodeOutput(made)


NODES = [CascadeIPAdapter]
