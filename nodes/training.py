"""Training inside ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from comfy_api.latest import io

from ..cascade.errors import CascadeError
from ..cascade.tiny.image_sources import EXAMPLES
from ..cascade.training.lora import defaults_for
from .host import checkpoint_sets, folders, training
from .types import TRAINING, LoraType, field, schema

INCLUDED = {f"tiny {name} (included)": settings for name, settings in EXAMPLES.items()}
"""Choice -> settings of images that need no files."""
HEARTS, SHAPES = INCLUDED
CONTINUE, RESTART = "continue", "restart"
AUTO, NONE = "auto", "none"
MODULES = ("attention", "key_value", "all")
WARMUP = 20
"""Steps of the warmup. A fixed number, so that a run can be made longer."""


class Row(NamedTuple):
    """An input of the node, and where its value goes in the settings of a training: read(value) at `key`.

    Without a key it is used together with others (see `settings`), or not by the training.
    """

    field: Any
    key: str | None = None
    read: Callable[[Any], Any] = lambda value: value


def _row(kind: Any, name: str, key: str | None, tip: str, read: Any = lambda value: value, **options: Any) -> Row:
    return Row(field(kind, name, tooltip=tip, **options), key, read)


def _file(kind: str, name: str, tip: str) -> Row:
    return Row(folders.file_field(kind, tip, name=name), f"lora.{kind}", partial(_find, kind))


def _rows() -> list[Row]:
    """The one table of the inputs: schema and settings follow from it."""
    example = f"{HEARTS}: {EXAMPLES['hearts']['count']} images to try it with."
    previewers = [AUTO, NONE, *folders.choices("previewer")]
    rate = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 1e-5, "round": 1e-7}
    more = partial(_row, advanced=True)
    modules = partial(more, io.Combo, read=_modules)
    # fmt: off
    return [
        _row(io.String, "name", None, "Name of the file in models/loras, and of the run: the same name continues it.",
             default="my_lora"),
        _row(io.String, "folder", None, "Images, each with a caption of the same name beside it (owl.png, owl.txt): a "
             "folder or tar in ComfyUI's input folder, or a whole path in its input, output or models folder. "
             f"{example}", default=HEARTS),
        _file("stage_c", "unet_name", "The Stage C to train."),
        _file("text_encoder", "clip_name", "The text encoder of this Stage C."),
        _file("effnet", "encoder_name", "The EfficientNet encoder, which turns images into Stage C's latents."),
        _row(io.Combo, "previewer", None, "Decodes the samples. auto: the one of the encoder's file, or one in the vae "
             "folder. none: no samples.", options=previewers, default=AUTO),
        _row(io.String, "token", None, "The token that the captions use for the subject, in brackets so that it "
             "differs from ordinary text. Empty for a style.", default="[heart]"),
        _row(io.String, "initializer_token", None, "Text for something similar: the token starts as the mean of its "
             "tokens. Empty: random.", default="circle square triangle star"),
        _row(io.Int, "steps", "steps", "Length of the training. Raise it to train a finished run further.",
             default=400, min=1, max=1_000_000),
        _row(io.Int, "batch_size", "batch_size", "Images per step. More need more memory.", default=4, min=1, max=256),
        _row(io.Float, "learning_rate", "learning_rate", "0: by the size of the model: 1e-4 for the released models, "
             "2e-3 for the tiny cascade.", **rate),
        _row(io.Int, "rank", "lora.rank", "Size of the LoRA: 4 to 16 for a subject, 16 to 64 for a style.",
             default=16, min=1, max=1024),
        _row(io.Int, "resolution", None, "Images are cropped to a centered square of so many pixels. 0: by the size of "
             "the model: 1024 for the released models, 256 for the tiny cascade.", default=0, min=0, max=4096, step=32),
        # The page would change it after each run, and a run with another seed cannot be continued.
        _row(io.Int, "seed", "seed", "Seed of weights, noise and the order of images. A run continues only with the "
             "same seed.", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False),
        modules("target_modules", "lora.target_modules", "Layers of Stage C that are trained. attention: as the "
                "released trainer. key_value: the fewest, for one subject. all: for a subject unlike the training "
                "images. none: only the token.", options=[*MODULES, NONE], default="attention"),
        modules("text_encoder_modules", "lora.text_encoder_modules", "Layers of the text encoder that are trained.",
                options=[NONE, *MODULES], default=NONE),
        more(io.Float, "token_learning_rate", "lora.token_learning_rate", "Learning rate of the token. 0: by the size "
             "of the model: 1e-3 for the released models, 3e-3 for the tiny cascade.", **rate),
        more(io.Float, "alpha", "lora.alpha", "The LoRA is scaled by alpha / rank. 0: alpha is the rank.",
             lambda alpha: alpha or None, default=0.0, min=0.0, max=10000.0, step=0.5),
        more(io.Float, "dropout", "lora.dropout", "Fraction of the LoRA's input that is set to 0 at random, against "
             "overfitting.", default=0.0, min=0.0, max=0.9, step=0.05),
        more(io.Boolean, "use_dora", "lora.use_dora", "DoRA: trains magnitude and direction separately. Slower, often "
             "better at a small rank.", default=False),
        more(io.String, "class_folder", None, "Images of the same class (other owls), captions without the token, so "
             f"that the class stays as it is. Empty: none. {SHAPES}: images of the tiny cascade's "
             "training.", default=""),
        more(io.String, "caption", None, "For images without a caption. Empty: the file's name.", default=""),
        more(io.String, "sample_prompts", "lora.sample_prompts", "Samples are generated from these prompts, one a "
             "line. Empty: from the first captions.", lambda text: _lines(text) or None, default="", multiline=True),
        more(io.Int, "sample_every", None, "Generate samples every so many steps. 0: at the end.",
             default=0, min=0, max=1_000_000),
        more(io.Combo, "existing_run", None, "If there is a run of this name: continue it, with its settings and "
             "images, or delete it and restart.", options=[CONTINUE, RESTART], default=CONTINUE),
        _row(io.Image, "images", None, "Images in place of the folder, all of one size.", optional=True),
        _row(io.String, "captions", None, "For connected images: one line each, or one for all.",
             default="", multiline=True, optional=True),
    ]
    # fmt: on


def _find(kind: str, choice: str) -> str:
    return str(folders.find(kind, choice))


def _modules(choice: str) -> list[str] | None:
    return None if choice == NONE else [choice]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


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
            inputs=[row.field for row in _rows()],
            outputs=[
                LoraType.Output("lora", display_name="lora", tooltip="For Load LoRA, LoRA Info and Save LoRA."),
                io.Image.Output("loss", display_name="loss", tooltip="The loss over the steps."),
                io.Image.Output("samples", display_name="samples", tooltip="Images of the sample prompts."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="The file, learning rates and resolution as used, images that were left out.",
                ),
            ],
            is_output_node=True,
            search_aliases=["finetune", "dreambooth", "textual inversion", "lora training"],
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None, class_folder: str | None, existing_run: str | None, **_: Any
    ) -> Any:
        if existing_run == RESTART:
            return float("nan")
        names = [name for name in (folder, class_folder) if name and name not in INCLUDED]
        stamps = [training.image_stamp(name) for name in names]
        return float("nan") if None in stamps else checkpoint_sets.digest(stamps)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        restart = inputs["existing_run"] == RESTART
        with training.run_of(inputs["name"]):
            trained = training.train_lora(inputs["name"], settings(inputs), restart=restart)
        return io.NodeOutput(trained.lora, trained.loss, trained.samples, trained.report)


def settings(inputs: dict[str, Any]) -> dict[str, Any]:
    """The node's inputs as a training file has them. Raises CascadeError."""
    encoder = folders.find("effnet", inputs["encoder_name"])
    by_size = defaults_for(folders.find("stage_c", inputs["unet_name"]))._asdict()
    values = {**inputs, **{name: inputs[name] or default for name, default in by_size.items()}}
    found = {row.key: row.read(values[row.field.id]) for row in _rows() if row.key is not None}
    section = {key.removeprefix("lora."): value for key, value in found.items() if key.startswith("lora.")}
    text, initializer = inputs["token"].strip(), inputs["initializer_token"].strip()
    class_folder = inputs["class_folder"].strip()
    section |= {
        "images": image_settings(values),
        "cache": str(folders.run_folder(inputs["name"]) / "cache"),
        "previewer": checkpoint_sets.previewer(encoder, inputs["encoder_name"], inputs["previewer"]),
        "tokens": [{"text": text, "initializer": initializer or None}] if text else None,
        "class_images": source(class_folder, values["resolution"]) if class_folder else None,
    }
    return {
        **{key: value for key, value in found.items() if not key.startswith("lora.")},
        "warmup": WARMUP,
        "precision": training.precision(),
        "checkpoint_every": 200,
        "log_every": max(1, inputs["steps"] // training.LINES),
        "sample_every": inputs["sample_every"] or inputs["steps"],
        "lora": section,
    }


def image_settings(inputs: dict[str, Any]) -> dict[str, Any]:
    images = inputs.get("images")
    if images is None:
        return source(inputs["folder"], inputs["resolution"], inputs["caption"])
    if images.shape[-1] != 3:
        raise CascadeError(f"Images have 3 channels, these have {images.shape[-1]}.")
    lines = _lines(inputs.get("captions", ""))
    stored = training.store_images(inputs["name"], images, lines or [inputs["caption"].strip()])
    return {"source": "folder", "path": str(stored), "size": inputs["resolution"]}


def source(folder: str, size: int, caption: str = "") -> dict[str, Any]:
    """The images of a folder, or included ones."""
    if included := INCLUDED.get(folder.strip()):
        return {**included, "size": size}
    path = str(folders.images(folder))
    return {"source": "folder", "path": path, "size": size, "caption": caption.strip() or None}


NODES = [CascadeTrainLora]
