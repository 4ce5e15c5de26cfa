"""ControlNets: loading one, and putting it on both conditionings."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.errors import CascadeError
from .host import control, folders
from .types import CONTROL, LOADERS, field, schema

BOTH, POSITIVE, NEGATIVE = "positive and negative", "positive alone", "negative alone"


class CascadeLoadControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        choices = folders.controlnet_choices()
        return schema(
            node_id="CascadeLoadControlNet",
            display_name="Load ControlNet (Stable Cascade)",
            category=LOADERS,
            description="A ControlNet of any kind and width: released, yours, or one of the tiny cascade's.",
            inputs=[
                field(
                    io.Combo,
                    "controlnet",
                    options=choices,
                    default=choices[0],
                    tooltip="From ComfyUI's controlnet folder. The tiny ones belong to the tiny cascade alone.",
                ),
                field(
                    io.String,
                    "blocks",
                    default="",
                    advanced=True,
                    tooltip="Empty: as the file tells, or as released. Else the residual blocks that it controls, "
                    "as in 0, 4, 8, 12: for files of other trainers that do not tell them.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    "control_net", display_name="control_net", tooltip="For Apply ControlNet, ComfyUI's too."
                ),
                io.String.Output("report", display_name="report", tooltip="What it reads, and for which Stage C."),
            ],
            search_aliases=["control net", "canny", "inpainting", "super resolution", "identity"],
        )

    @classmethod
    def fingerprint_inputs(cls, controlnet: str, **_: Any) -> Any:
        return folders.stamp(folders.find_controlnet(controlnet))

    @classmethod
    def execute(cls, controlnet: str, blocks: str) -> io.NodeOutput:
        return io.NodeOutput(*control.load_control(folders.find_controlnet(controlnet), _numbers(blocks)))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise CascadeError(
            f"Load ControlNet (Stable Cascade): blocks are whole numbers, as in 0, 4, 8, 12; found {text!r}."
        ) from error


class CascadeApplyControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        share = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001}
        return schema(
            node_id="CascadeApplyControlNet",
            display_name="Apply ControlNet (Stable Cascade)",
            category=CONTROL,
            description="Stage C draws what the prompt says as the hint shows it. Several nets in a row add up.",
            inputs=[
                field(io.Conditioning, "positive", tooltip="What the image should show."),
                field(io.Conditioning, "negative", tooltip="What to keep away."),
                field(io.ControlNet, "control_net", tooltip="From Load ControlNet, ours or ComfyUI's."),
                field(io.Image, "hint", tooltip="From the hint node of the net's kind. Another kind is refused."),
                field(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much the hint counts. 0: as without a ControlNet.",
                ),
                field(io.Float, "start", default=0.0, **share, tooltip="The hint counts from this part of the run on."),
                field(
                    io.Float,
                    "end",
                    default=1.0,
                    **share,
                    tooltip="The hint counts up to this part of the run. Less leaves detail to the prompt.",
                ),
                field(
                    io.Combo,
                    "apply_to",
                    options=[BOTH, POSITIVE, NEGATIVE],
                    default=BOTH,
                    advanced=True,
                    tooltip="Both, as released. The positive alone: guidance strengthens the hint too. For another "
                    "strength on each, use the node twice.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive_out", display_name="positive", tooltip="For positive of the sampler of Stage C."
                ),
                io.Conditioning.Output(
                    "negative_out", display_name="negative", tooltip="For negative of the sampler of Stage C."
                ),
            ],
            search_aliases=["controlnet", "control net", "canny", "inpaint", "super resolution"],
        )

    @classmethod
    def execute(
        cls,
        positive: Any,
        negative: Any,
        control_net: Any,
        hint: Any,
        strength: float,
        start: float,
        end: float,
        apply_to: str,
    ) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(positive, negative)
        wanted = positive if apply_to != NEGATIVE else None, negative if apply_to != POSITIVE else None
        made = control.apply(*wanted, control_net, hint, strength, start, end)
        return io.NodeOutput(*(old if new is None else new for old, new in zip((positive, negative), made)))


NODES = [CascadeLoadControlNet, CascadeApplyControlNet]
