"""The node Train LoRA."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from comfy_api.latest import io

from ...cascade.adapters import read_lora
from ...cascade.tiny.image_sources import EXAMPLES
from ...cascade.training.lora import defaults_for
from ...cascade.training.lora_kinds import Kind
from ..host import folders
from ..types import TRAINING, LoraType, schema
from .rows import (
    HEARTS,
    NONE,
    RATE,
    SHAPES,
    Row,
    batch_size_row,
    caption_row,
    encoder_rows,
    end_rows,
    file_row,
    fingerprint,
    folder_row,
    image_settings,
    more,
    name_row,
    optimizer_row,
    outputs,
    resolution_row,
    row,
    sample_prompts_row,
    seed_row,
    shape_rows,
    source,
    steps_row,
    train,
    whole,
)

MODULES = ("attention", "key_value", "all")
CLASS_TARGETS = {"given": "images", "predicted": "network"}
"""Choice -> the setting of a training."""


class CascadeTrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeTrainLora",
            display_name="Train LoRA (Stable Cascade)",
            category=TRAINING,
            description=(
                "Trains a LoRA of a style, or of a subject under a token, from a few images. It can be stopped at any "
                "time: the state is saved and the next run continues. The file is saved in models/loras."
            ),
            inputs=[each.field for each in _lora_rows()],
            outputs=[
                LoraType.Output("lora", display_name="lora", tooltip="For Load LoRA, LoRA Info and Save LoRA."),
                *outputs("Images of the sample prompts."),
            ],
            is_output_node=True,
            search_aliases=["finetune", "dreambooth", "textual inversion", "lora training"],
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None, class_folder: str | None, existing_run: str | None, **_: Any
    ) -> Any:
        return fingerprint(existing_run, folder, class_folder)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        trained = train("lora", inputs, lora_settings, made="lora")
        return io.NodeOutput(read_lora(trained.file), trained.loss, trained.samples, trained.report)


def _modules(choice: str) -> list[str] | None:
    return None if choice == NONE else [choice]


def _lora_rows() -> list[Row]:
    """The one table of the inputs: schema and settings follow from it."""
    modules = partial(more, io.Combo, read=_modules)
    # fmt: off
    return [
        name_row("loras", "my_lora"),
        folder_row(HEARTS, EXAMPLES["hearts"]["count"]),
        file_row("stage_c", "unet_name", "The Stage C to train."),
        file_row("text_encoder", "clip_name", "The text encoder of this Stage C."),
        *encoder_rows(),
        row(io.String, "token", None, "The token that the captions use for the subject, in brackets so that it "
             "differs from ordinary text. Empty for a style.", default="[heart]"),
        row(io.String, "initializer_token", None, "Text for something similar: the token starts as the mean of its "
             "tokens. Empty: random.", default="circle square triangle star"),
        steps_row(400),
        batch_size_row(4),
        row(io.Float, "learning_rate", "learning_rate", "0: by the size of the model: 1e-4 for the released models, "
             "2e-3 for the tiny cascade.", **RATE),
        row(io.Int, "rank", ".rank", "Size of the LoRA: 4 to 16 for a subject, 16 to 64 for a style.",
             default=16, min=1, max=1024),
        resolution_row(),
        seed_row(),
        modules("target_modules", ".target_modules", "Layers of Stage C that are trained. attention: as the "
                "released trainer. key_value: the fewest, for one subject. all: for a subject unlike the training "
                "images. none: only the token.", options=[*MODULES, NONE], default="attention"),
        modules("text_encoder_modules", ".text_encoder_modules", "Layers of the text encoder that are trained.",
                options=[NONE, *MODULES], default=NONE),
        more(io.Float, "token_learning_rate", ".token_learning_rate", "Learning rate of the token. 0: by the size "
             "of the model: 1e-3 for the released models, 3e-3 for the tiny cascade.", **RATE),
        more(io.Float, "alpha", ".alpha", "The LoRA is scaled by alpha / rank. 0: alpha is the rank.",
             lambda alpha: alpha or None, default=0.0, min=0.0, max=10000.0, step=0.5),
        more(io.Float, "dropout", ".dropout", "Fraction of the LoRA's input that is set to 0 at random, against "
             "overfitting.", default=0.0, min=0.0, max=0.9, step=0.05),
        more(io.Boolean, "use_dora", ".use_dora", "DoRA: trains magnitude and direction separately. Slower, often "
             "better at a small rank.", default=False),
        more(io.String, "class_folder", None, "Images of the same class (other owls), captions without the token, so "
             f"that the class stays as it is. Empty: none. {SHAPES}: images of the tiny cascade's "
             "training.", default=""),
        caption_row(),
        sample_prompts_row(),
        *end_rows(),
        row(io.Image, "images", None, "Images in place of the folder, all of one size.", optional=True),
        row(io.String, "captions", None, "For connected images: one line each, or one for all.",
             default="", multiline=True, optional=True),
        *shape_rows(optional=True),
        more(io.Int, "vectors", None, "Vectors of the token. More hold more detail and need more images.",
             default=1, min=1, max=32, optional=True),
        more(io.Combo, "class_target", ".class_target", "What class images are trained towards. given: the images. "
             "predicted: what the network predicted for them before the training, which changes the class less.",
             CLASS_TARGETS.__getitem__, options=list(CLASS_TARGETS), default="given", optional=True),
        more(io.Combo, "kind", ".kind", "How a change is stored. lora: two small matrices. loha, lokr, oft: as LyCORIS "
             "has them.", options=list(get_args(Kind)), default="lora", optional=True),
        optimizer_row(False),
    ]
    # fmt: on


def lora_settings(inputs: dict[str, Any]) -> dict[str, Any]:
    """The node's inputs as a training file has them. Raises CascadeError."""
    by_size = defaults_for(folders.find("stage_c", inputs["unet_name"]))._asdict()
    values = {**inputs, **{name: inputs[name] or default for name, default in by_size.items()}}
    text, initializer = inputs["token"].strip(), inputs["initializer_token"].strip()
    class_folder = inputs["class_folder"].strip()
    token = {"text": text, "initializer": initializer or None, "vectors": inputs.get("vectors", 1)}
    section = {
        "tokens": [token] if text else None,
        "class_images": source(class_folder, values["resolution"]) if class_folder else None,
    }
    return whole("lora", _lora_rows(), values, image_settings(values), section)
