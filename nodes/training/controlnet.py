"""The node Train ControlNet."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...cascade.tiny.image_sources import EXAMPLES
from ..host import control, folders
from ..types import TRAINING, schema
from .rows import (
    NONE,
    RATE,
    SHAPES,
    Row,
    batch_size_row,
    by_size,
    caption_row,
    checkpointing_row,
    encoder_rows,
    end_rows,
    file_row,
    fingerprint,
    folder_row,
    image_settings,
    latent_pixels,
    more,
    name_row,
    optimizer_row,
    outputs,
    resolution_row,
    row,
    seed_row,
    shape_rows,
    steps_row,
    train,
    whole,
)

HINTS = ("canny", "sketch", "inpainting", "super_resolution", "stored", "identity")
CHANNELS = {"gray": 1, "color": 3}
"""Of a stored hint."""


class CascadeTrainControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeTrainControlNet",
            display_name="Train ControlNet (Stable Cascade)",
            category=TRAINING,
            description=(
                "Trains a ControlNet, which makes Stage C follow a hint. It can be stopped at any time: the state is "
                "saved and the next run continues. The file is saved in models/controlnet."
            ),
            inputs=[each.field for each in _control_rows()],
            outputs=[
                io.ControlNet.Output(
                    "control_net", display_name="control_net", tooltip="For Apply ControlNet, ComfyUI's too."
                ),
                *outputs("Hints, and below them images of their captions."),
            ],
            is_output_node=True,
            search_aliases=["controlnet training", "canny", "inpainting", "super resolution", "identity"],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, existing_run: str | None, **_: Any) -> Any:
        return fingerprint(existing_run, folder)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        trained = train("controlnet", inputs, control_settings, made=f"controlnet_{inputs['hint']}")
        loaded, _ = control.load_control(trained.file)
        return io.NodeOutput(loaded, trained.loss, trained.samples, trained.report)


def _control_rows() -> list[Row]:
    # fmt: off
    return [
        name_row("controlnet", "my_controlnet"),
        folder_row(SHAPES, EXAMPLES["shapes"]["count"]),
        row(io.Combo, "hint", ".filter", "What it reads. canny: edges. sketch: drawn lines. inpainting: images "
             "with a masked part. super_resolution: small images. stored: owl.hint.png beside owl.png, such as depth "
             "or a pose. identity: faces in owl.faces.json.", options=list(HINTS), default="canny"),
        file_row("stage_c", "unet_name", "The Stage C that is to follow hints. It stays as it is."),
        file_row("text_encoder", "clip_name", "The text encoder of this Stage C."),
        *encoder_rows(),
        steps_row(2000),
        batch_size_row(4),
        row(io.Float, "learning_rate", "learning_rate", "0: by the size of the model: 1e-4 for the released models, "
             "2e-3 for the tiny cascade.", **RATE),
        resolution_row(),
        seed_row(),
        more(io.Combo, "hint_channels", None, "Of a stored hint. gray: depth, sketches, QR codes. color: poses, "
             "normals.", options=list(CHANNELS), default="gray"),
        more(io.Combo, "control_net_name", None, "A ControlNet of the same kind and sizes to train further. none: a "
             "new one.", options=[NONE, *folders.controlnet_choices()], default=NONE),
        checkpointing_row(),
        optimizer_row(True),
        *shape_rows(),
        caption_row(),
        *end_rows(),
    ]
    # fmt: on


def control_settings(inputs: dict[str, Any]) -> dict[str, Any]:
    """As `lora_settings`."""
    path = folders.find("stage_c", inputs["unet_name"])
    values, start = by_size(inputs, path), inputs["control_net_name"]
    pixels = latent_pixels(values["resolution"])
    section = {
        "filter_params": {"channels": CHANNELS[inputs["hint_channels"]]} if inputs["hint"] == "stored" else {},
        "start": None if start == NONE else str(folders.find_controlnet(start)),
        "effnet_size": pixels,
        "hint_size": pixels,
    }
    return {"ema": 0.99, **whole("controlnet", _control_rows(), values, image_settings(values), section)}
