"""The node Finetune Stage C."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from ...cascade.tiny.image_sources import EXAMPLES
from ...cascade.training.lora import is_small
from ..host import checkpoint_sets, folders, models
from ..types import TRAINING, schema
from .rows import (
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
    find,
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
    sample_prompts_row,
    seed_row,
    shape_rows,
    steps_row,
    train,
    whole,
)


class CascadeFinetune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeFinetune",
            display_name="Finetune Stage C (Stable Cascade)",
            category=TRAINING,
            description=(
                "Trains all of Stage C on images with captions. It needs several times the memory of a LoRA. It can be "
                "stopped at any time: the state is saved and the next run continues. The file is saved in "
                "models/diffusion_models."
            ),
            inputs=[each.field for each in _finetune_rows()],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="Stage C, for samplers of ComfyUI's too."),
                *outputs("Images of the sample prompts."),
            ],
            is_output_node=True,
            search_aliases=["full finetune", "dreambooth", "train model", "unet"],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, existing_run: str | None, **_: Any) -> Any:
        return fingerprint(existing_run, folder)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        trained = train("stage_c", inputs, finetune_settings, made="stage_c")
        encoder = folders.find("effnet", inputs["encoder_name"])
        previewer = checkpoint_sets.previewer(encoder, inputs["encoder_name"], inputs["previewer"])
        model = models.load_stage("stage_c", trained.file, "default", previewer)
        return io.NodeOutput(model, trained.loss, trained.samples, trained.report)


def _finetune_rows() -> list[Row]:
    # fmt: off
    return [
        name_row("diffusion_models", "my_stage_c"),
        folder_row(SHAPES, EXAMPLES["shapes"]["count"]),
        Row(folders.file_field("stage_c", "The Stage C to train.", name="unet_name"), ".start",
            partial(find, "stage_c")),
        file_row("text_encoder", "clip_name", "The text encoder of this Stage C."),
        file_row("image_encoder", "clip_vision_name", "The image encoder of this Stage C, for its image prompts."),
        *encoder_rows(),
        steps_row(1000),
        batch_size_row(1),
        row(io.Int, "accumulation", "accumulation", "Batches per step: as a larger batch, in the memory of one.",
             default=4, min=1, max=1024),
        row(io.Float, "learning_rate", "learning_rate", "0: by the size of the model: 1e-5 for the released models, "
             "1e-4 for the tiny cascade.", **RATE),
        resolution_row(),
        seed_row(),
        checkpointing_row(),
        optimizer_row(True),
        more(io.Float, "ema", "ema", "The file is an average of the weights over the steps, with this decay, such as "
             "0.99: steadier, for more memory. 0: the last weights.", default=0.0, min=0.0, max=0.9999, step=0.001,
             round=0.0001),
        *shape_rows(),
        caption_row(),
        sample_prompts_row(),
        *end_rows(),
    ]
    # fmt: on


def finetune_settings(inputs: dict[str, Any]) -> dict[str, Any]:
    """As `lora_settings`."""
    path = folders.find("stage_c", inputs["unet_name"])
    values = by_size({**inputs, "learning_rate": inputs["learning_rate"] or (1e-4 if is_small(path) else 1e-5)}, path)
    section = {
        "effnet_size": latent_pixels(values["resolution"]),
        "train_text_encoder": False,
        "train_image_encoder": False,
    }
    return whole("stage_c", _finetune_rows(), values, image_settings(values), section)
