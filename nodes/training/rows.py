"""What the nodes that train share: the inputs with their places in the settings of a training, and its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from comfy_api.latest import io

from ...cascade.errors import CascadeError
from ...cascade.tiny.image_sources import EXAMPLES
from ...cascade.training.lora import defaults_for, is_small
from ..host import checkpoint_sets, folders, training
from ..types import field

INCLUDED = {f"tiny {name} (included)": settings for name, settings in EXAMPLES.items()}
"""Choice -> settings of images that need no files."""
HEARTS, SHAPES = INCLUDED
CONTINUE, RESTART = "continue", "restart"
AUTO, NONE = "auto", "none"
RATIOS = ["1/1", "4/5", "3/4", "2/3", "9/16", "1/2"]
"""Shapes of images, with their inverses, where they are not squares."""
OPTIMIZERS = ["adamw", "adafactor", "adamw_8bit", "prodigy"]
BY_SIZE = "by size"
WARMUP = 20
"""Steps of the warmup. A fixed number, so that a run can be made longer."""


class Row(NamedTuple):
    """An input of a node, and where its value goes in the settings of a training: read(value) at `key`. The task's own
    keys begin with a dot.

    Without a key it is used together with others, or not by the training.
    """

    field: Any
    key: str | None = None
    read: Callable[[Any], Any] = lambda value: value


def row(kind: Any, name: str, key: str | None, tip: str, read: Any = lambda value: value, **options: Any) -> Row:
    return Row(field(kind, name, tooltip=tip, **options), key, read)


more = partial(row, advanced=True)
RATE = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 1e-5, "round": 1e-7}


def file_row(kind: str, name: str, tip: str) -> Row:
    return Row(folders.file_field(kind, tip, name=name), f".{kind}", partial(find, kind))


def name_row(where: str, default: str) -> Row:
    tip = f"Name of the file in models/{where}, and of the run: the same name continues it."
    return row(io.String, "name", None, tip, default=default)


def folder_row(example: str, count: int) -> Row:
    tip = (
        "Images, each with a caption of the same name beside it (owl.png, owl.txt): a folder or tar in ComfyUI's input "
        f"folder, or a whole path in its input, output or models folder. {example}: {count} images to try it with."
    )
    return row(io.String, "folder", None, tip, default=example)


def encoder_rows() -> list[Row]:
    # fmt: off
    return [
        file_row("effnet", "encoder_name", "The EfficientNet encoder, which turns images into Stage C's latents."),
        row(io.Combo, "previewer", None, "Decodes the samples. auto: the one of the encoder's file, or one in the vae "
             "folder. none: no samples.", options=[AUTO, NONE, *folders.choices("previewer")], default=AUTO),
    ]
    # fmt: on


def steps_row(default: int) -> Row:
    tip = "Length of the training. Raise it to train a finished run further."
    return row(io.Int, "steps", "steps", tip, default=default, min=1, max=1_000_000)


def batch_size_row(default: int) -> Row:
    tip = "Images per step. More need more memory."
    return row(io.Int, "batch_size", "batch_size", tip, default=default, min=1, max=256)


def sample_prompts_row() -> Row:
    tip = "Samples are generated from these prompts, one a line. Empty: from the first captions."
    key, options = "sample_prompts", {"default": "", "multiline": True}
    return more(io.String, key, f".{key}", tip, lambda text: lines_of(text) or None, **options)


def resolution_row() -> Row:
    tip = (
        "Images are cropped to a centered square of so many pixels. 0: by the size of the model: 1024 for the released "
        "models, 256 for the tiny cascade."
    )
    return row(io.Int, "resolution", None, tip, default=0, min=0, max=4096, step=32)


def seed_row() -> Row:
    # The page would change it after each run, and a run with another seed cannot be continued.
    tip = "Seed of weights, noise and the order of images. A run continues only with the same seed."
    limits = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}
    return row(io.Int, "seed", "seed", tip, control_after_generate=False, **limits)


def caption_row() -> Row:
    return more(io.String, "caption", None, "For images without a caption. Empty: the file's name.", default="")


def end_rows() -> list[Row]:
    # fmt: off
    return [
        more(io.Int, "sample_every", None, "Generate samples every so many steps. 0: at the end.",
             default=0, min=0, max=1_000_000),
        more(io.Combo, "existing_run", None, "If there is a run of this name: continue it, with its settings and "
             "images, or delete it and restart.", options=[CONTINUE, RESTART], default=CONTINUE),
    ]
    # fmt: on


def shape_rows(**extra: Any) -> list[Row]:
    # fmt: off
    return [
        more(io.Boolean, "aspect_ratios", None, "Images keep their shape: each is trained at the nearest of several "
             "shapes of about the same area, in place of a square.", default=False, **extra),
        more(io.Boolean, "masks", None, "owl.mask.png beside owl.png: what is black there is not learned, what is gray "
             "less than the white.", default=False, **extra),
    ]
    # fmt: on


def checkpointing_row() -> Row:
    tip = "Less memory, a third slower. by size: for the released models."
    key = "gradient_checkpointing"
    return more(io.Combo, key, key, tip, options=[BY_SIZE, "on", "off"], default=BY_SIZE)


def optimizer_row(by_size: bool) -> Row:
    options = [BY_SIZE] * by_size + OPTIMIZERS
    tip = (
        "adafactor needs less memory than adamw. adamw_8bit needs the package bitsandbytes, prodigy the package "
        "prodigyopt and a learning rate of 1."
    )
    optional = {} if by_size else {"optional": True}
    return more(io.Combo, "optimizer", "optimizer", tip, options=options, default=options[0], **optional)


def find(kind: str, choice: str) -> str:
    return str(folders.find(kind, choice))


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def outputs(samples: str) -> list[Any]:
    return [
        io.Image.Output("loss", display_name="loss", tooltip="The loss over the steps."),
        io.Image.Output("samples", display_name="samples", tooltip=samples),
        io.String.Output(
            "report",
            display_name="report",
            tooltip="The file, learning rates and resolution as used, images that were left out.",
        ),
    ]


def fingerprint(existing_run: str | None, *image_folders: str | None) -> Any:
    if existing_run == RESTART:
        return float("nan")
    stamps = [training.image_stamp(name) for name in image_folders if name and name not in INCLUDED]
    return float("nan") if None in stamps else checkpoint_sets.digest(stamps)


def train(
    kind: str, inputs: dict[str, Any], settings: Callable[[dict[str, Any]], dict[str, Any]], *, made: str
) -> training.Trained:
    restart = inputs["existing_run"] == RESTART
    with training.run_of(kind, inputs["name"]):
        return training.train(kind, inputs["name"], settings(inputs), made=made, restart=restart)


def whole(
    task: str, rows: Sequence[Row], inputs: dict[str, Any], images: dict[str, Any], section: dict[str, Any]
) -> dict[str, Any]:
    """What all trainings have: the values of the rows, and with them those of `section`. Raises CascadeError."""
    given = [each for each in rows if each.key is not None and each.field.id in inputs]
    found = {str(each.key): each.read(inputs[each.field.id]) for each in given}
    encoder = folders.find("effnet", inputs["encoder_name"])
    return {
        "task": task,
        **{key: value for key, value in found.items() if not key.startswith(".")},
        "warmup": WARMUP,
        "precision": training.precision(),
        "checkpoint_every": 200,
        "log_every": max(1, inputs["steps"] // training.LINES),
        "sample_every": inputs["sample_every"] or inputs["steps"],
        task: {
            **{key.removeprefix("."): value for key, value in found.items() if key.startswith(".")},
            "images": images,
            "cache": str(folders.run_folder(inputs["name"]) / "cache"),
            "previewer": checkpoint_sets.previewer(encoder, inputs["encoder_name"], inputs["previewer"]),
            **section,
        },
    }


def by_size(inputs: dict[str, Any], stage_c: Path) -> dict[str, Any]:
    """The inputs, with what the size of a Stage C decides."""
    small = is_small(stage_c)
    defaults, optimizer = defaults_for(stage_c), "adamw" if small else "adafactor"
    checkpointing = inputs["gradient_checkpointing"]
    return {
        **inputs,
        "learning_rate": inputs["learning_rate"] or defaults.learning_rate,
        "resolution": inputs["resolution"] or defaults.resolution,
        "optimizer": optimizer if inputs["optimizer"] == BY_SIZE else inputs["optimizer"],
        "gradient_checkpointing": not small if checkpointing == BY_SIZE else checkpointing == "on",
    }


def latent_pixels(resolution: int) -> int:
    """The size at which images go through the encoder: three quarters, as released."""
    return max(32, resolution * 3 // 4 // 32 * 32)


def image_settings(inputs: dict[str, Any]) -> dict[str, Any]:
    """The section `images` of a training."""
    found = _stored_or_chosen(inputs)
    shapes = {"aspect_ratios": RATIOS} if inputs.get("aspect_ratios") else {}
    return {**found, **shapes, **({"masks": True} if inputs.get("masks") else {})}


def _stored_or_chosen(inputs: dict[str, Any]) -> dict[str, Any]:
    images = inputs.get("images")
    if images is None:
        return source(inputs["folder"], inputs["resolution"], inputs["caption"])
    if images.shape[-1] != 3:
        raise CascadeError(f"Images have 3 channels, these have {images.shape[-1]}.")
    lines = lines_of(inputs.get("captions", ""))
    stored = training.store_images(inputs["name"], images, lines or [inputs["caption"].strip()])
    return {"source": "folder", "path": str(stored), "size": inputs["resolution"]}


def source(folder: str, size: int, caption: str = "") -> dict[str, Any]:
    """The images of a folder, or included ones."""
    if included := INCLUDED.get(folder.strip()):
        return {**included, "size": size}
    path = str(folders.images(folder))
    return {"source": "folder", "path": path, "size": size, "caption": caption.strip() or None}
