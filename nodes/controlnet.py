"""ControlNets: loading one, and applying it to both conditionings."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.errors import CascadeError
from .host import control, folders
from .types import CONTROL, LOADERS, field, schema

BOTH, POSITIVE, NEGATIVE = "positive and negative", "positive only", "negative only"


class CascadeLoadControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        choices = folders.controlnet_choices()
        return schema(
            node_id="CascadeLoadControlNet",
            display_name="Load ControlNet (Stable Cascade)",
            category=LOADERS,
            description="Loads a ControlNet of any kind and width: a released one, your own, or one of the tiny "
            "cascade's.",
            inputs=[
                field(
                    io.Combo,
                    "control_net_name",
                    options=choices,
                    default=choices[0],
                    tooltip="From ComfyUI's controlnet folder. The tiny ones fit the tiny cascade only.",
                ),
                field(
                    io.String,
                    "blocks",
                    default="",
                    advanced=True,
                    tooltip="Residual blocks that it controls, such as 0, 4, 8, 12: for files of other trainers that "
                    "do not say. Empty: as in the file, or as released.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    "control_net", display_name="control_net", tooltip="For Apply ControlNet, ComfyUI's too."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="Which hint it needs, and for which Stage C it is."
                ),
            ],
            search_aliases=[
                "control net",
                "load controlnet model",
                "canny",
                "inpainting",
                "super resolution",
                "identity",
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, control_net_name: str, **_: Any) -> Any:
        return folders.stamp(folders.find_controlnet(control_net_name))

    @classmethod
    def execute(cls, control_net_name: str, blocks: str) -> io.NodeOutput:
        return io.NodeOutput(*control.load_control(folders.find_controlnet(control_net_name), _numbers(blocks)))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.replace(",", " ").split())
    except ValueError as error:
        raise CascadeError(
            f"Load ControlNet (Stable Cascade): blocks are whole numbers, as in 0, 4, 8, 12; found {text!r}."
        ) from error


class CascadeApplyControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        percent = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001}
        return schema(
            node_id="CascadeApplyControlNet",
            display_name="Apply ControlNet (Stable Cascade)",
            category=CONTROL,
            description="Stage C then follows the prompt and the layout of the hint. Several of these nodes in a "
            "row add up.",
            inputs=[
                field(io.Conditioning, "positive", tooltip="What the image should show."),
                field(io.Conditioning, "negative", tooltip="What the image should not show."),
                field(io.ControlNet, "control_net", tooltip="From Load ControlNet, ours or ComfyUI's."),
                field(io.Image, "image", tooltip="The hint, from the hint node for this kind of net."),
                field(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Strength of the hint. 1: as trained; 0: no effect.",
                ),
                field(
                    io.Float,
                    "start_percent",
                    default=0.0,
                    **percent,
                    tooltip="From where on the hint acts: 0 is the start of sampling, 1 the end. Released: 0.",
                ),
                field(
                    io.Float,
                    "end_percent",
                    default=1.0,
                    **percent,
                    tooltip="Up to where the hint acts: 0 is the start of sampling, 1 the end. Less leaves detail to "
                    "the prompt.",
                ),
                field(
                    io.Combo,
                    "apply_to",
                    options=[BOTH, POSITIVE, NEGATIVE],
                    default=BOTH,
                    advanced=True,
                    tooltip="Both, as released. positive only: cfg strengthens the hint too. For a different strength "
                    "on each, use the node twice.",
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
        image: Any,
        strength: float,
        start_percent: float,
        end_percent: float,
        apply_to: str,
    ) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(positive, negative)
        wanted = positive if apply_to != NEGATIVE else None, negative if apply_to != POSITIVE else None
        made = control.apply(*wanted, control_net, image, strength, start_percent, end_percent)
        return io.NodeOutput(*(old if new is None else new for old, new in zip((positive, negative), made)))


NODES = [CascadeLoadControlNet, CascadeApplyControlNet]
