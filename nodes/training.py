"""Training inside ComfyUI."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.errors import CascadeError
from ..cascade.tiny import hearts
from .host import checkpoint_sets, folders, training
from .types import TRAINING, LoraType, field, schema

HEARTS, SHAPES = "tiny hearts (included)", "tiny shapes (included)"
"""Images that are drawn: a shape that the tiny cascade never saw, and those that it knows."""
GO_ON, ANEW = "go on", "anew"
AUTO, NONE = "auto", "none"
MODULES = ("attention", "key_value", "all")
SHAPE_COUNT = 200
WARMUP = 20
"""Steps; not a share of them all, so that a run can be made longer."""


class CascadeTrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeTrainLora",
            display_name="Train LoRA (Stable Cascade)",
            category=TRAINING,
            description=(
                "Learns a style, or a subject under a new word, from a few images. Stop it when you like: it saves, "
                "and the next run goes on. The file lands in models/loras."
            ),
            inputs=[
                field(
                    io.String,
                    "name",
                    default="my_lora",
                    tooltip="Of the file in models/loras, and of the run: the same name goes on where it stopped.",
                ),
                field(
                    io.String,
                    "folder",
                    default=HEARTS,
                    tooltip="Images, each with a caption of the same name beside it (owl.png, owl.txt): a folder in "
                    f"ComfyUI's input folder, a whole path, or a tar. {HEARTS}: {hearts.COUNT} drawn ones, to try it.",
                ),
                folders.file_field("stage_c", "The Stage C that is to learn.", name="stage_c"),
                folders.file_field("text_encoder", "The text encoder that belongs to it.", name="text_encoder"),
                folders.file_field(
                    "effnet", "The EfficientNet encoder, which turns images into Stage C's latents.", name="effnet"
                ),
                field(
                    io.Combo,
                    "previewer",
                    options=[AUTO, NONE, *folders.choices("previewer")],
                    default=AUTO,
                    tooltip="Draws the samples. auto: the one that came with the encoder, or lies in the vae folder.",
                ),
                field(
                    io.String,
                    "word",
                    default="[heart]",
                    tooltip="A new word that the captions use for the subject, in brackets so that it is no other. "
                    "Empty: none, for a style.",
                ),
                field(
                    io.String,
                    "starts_from",
                    default="circle square triangle star",
                    tooltip="What the new word means at first: the nearest thing that the model knows.",
                ),
                field(
                    io.Int,
                    "steps",
                    default=400,
                    min=1,
                    max=1_000_000,
                    tooltip="Raise it to train a finished run further.",
                ),
                field(io.Int, "batch_size", default=4, min=1, max=256, tooltip="Images a step; more take more memory."),
                field(
                    io.Float,
                    "learning_rate",
                    default=1e-4,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=1e-7,
                    tooltip="How far a step goes. 1e-4 for the released models, 2e-3 for the tiny cascade.",
                ),
                field(io.Int, "rank", default=16, min=1, max=1024, tooltip="Size of the LoRA: 4 to 16 for a subject."),
                field(
                    io.Int,
                    "size",
                    default=1024,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="Images are cut to a centerd square of this many pixels. 256 for the tiny cascade.",
                ),
                field(io.Int, "seed", default=0, min=0, max=2**53 - 1, tooltip="Another seed, another course."),
                field(
                    io.Combo,
                    "modules",
                    options=[*MODULES, NONE],
                    default="attention",
                    advanced=True,
                    tooltip="What of Stage C learns. attention: as released. key_value: the smallest, for one subject. "
                    "all: for what it has never seen. none: only the word.",
                ),
                field(
                    io.Combo,
                    "text_modules",
                    options=[NONE, *MODULES],
                    default=NONE,
                    advanced=True,
                    tooltip="What of the text encoder learns.",
                ),
                field(
                    io.Float,
                    "token_learning_rate",
                    default=1e-3,
                    min=0.0,
                    max=1.0,
                    step=1e-4,
                    round=1e-7,
                    advanced=True,
                    tooltip="How far a step moves the new word. 3e-3 for the tiny cascade.",
                ),
                field(
                    io.Float,
                    "alpha",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=0.5,
                    advanced=True,
                    tooltip="The change is scaled by alpha / rank. 0: as large as the rank, no scaling.",
                ),
                field(
                    io.Float,
                    "dropout",
                    default=0.0,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    advanced=True,
                    tooltip="Leaves out this part of the LoRA's input at random, against learning images by heart.",
                ),
                field(
                    io.Boolean,
                    "dora",
                    default=False,
                    advanced=True,
                    tooltip="DoRA: learns lengths and directions apart.",
                ),
                field(
                    io.String,
                    "class_folder",
                    default="",
                    advanced=True,
                    tooltip="Images of the same class (other owls), with captions without the word: keeps the class "
                    f"as it was. Empty: none. {SHAPES}: what the tiny cascade knows.",
                ),
                field(
                    io.String,
                    "caption",
                    default="",
                    advanced=True,
                    tooltip="For images without a caption. Empty: the file's name in words.",
                ),
                field(
                    io.String,
                    "prompts",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Samples are drawn of these, one a line. Empty: of the first captions.",
                ),
                field(
                    io.Int,
                    "sample_every",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Draw samples every so many steps. 0: at the end.",
                ),
                field(
                    io.Combo,
                    "start",
                    options=[GO_ON, ANEW],
                    default=GO_ON,
                    advanced=True,
                    tooltip="go on continues the run of this name, with its settings and images. anew forgets it.",
                ),
                field(
                    io.Image,
                    "images",
                    optional=True,
                    tooltip="Images in the place of the folder, all of one size.",
                ),
                field(
                    io.String,
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="For connected images: one line each, or one for all.",
                ),
            ],
            outputs=[
                LoraType.Output("lora", display_name="lora", tooltip="For Load LoRA, LoRA Info and Save LoRA."),
                io.Image.Output("loss", display_name="loss", tooltip="The loss over the steps."),
                io.Image.Output("samples", display_name="samples", tooltip="The prompts, drawn at the end."),
                io.String.Output("report", display_name="report", tooltip="The file, the images that were left out."),
            ],
            is_output_node=True,
            search_aliases=["finetune", "dreambooth", "textual inversion", "lora training"],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, class_folder: str | None, start: str | None, **_: Any) -> Any:
        if start == ANEW:
            return float("nan")
        names = [name for name in (folder, class_folder) if name and name not in (HEARTS, SHAPES)]
        return checkpoint_sets.digest([folders.stamp(folders.images(name)) for name in names])

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        trained = training.train_lora(inputs["name"], settings(inputs), anew=inputs["start"] == ANEW)
        return io.NodeOutput(trained.lora, trained.loss, trained.samples, trained.report)


def settings(inputs: dict[str, Any]) -> dict[str, Any]:
    """The node's inputs as a training file has them. Raises CascadeError."""
    steps = inputs["steps"]
    section: dict[str, Any] = {
        "images": image_settings(inputs),
        "cache": str(folders.run_folder(inputs["name"]) / "cache"),
        **{kind: str(folders.find(kind, inputs[kind])) for kind in ("stage_c", "text_encoder", "effnet")},
        "rank": inputs["rank"],
        "dropout": inputs["dropout"],
        "dora": inputs["dora"],
        "modules": None if inputs["modules"] == NONE else [inputs["modules"]],
        "text_modules": None if inputs["text_modules"] == NONE else [inputs["text_modules"]],
        "token_lr": inputs["token_learning_rate"],
    }
    found = checkpoint_sets.previewer(folders.find("effnet", inputs["effnet"]), inputs["effnet"], inputs["previewer"])
    if found is not None:
        section["previewer"] = str(found)
    if inputs["alpha"]:
        section["alpha"] = inputs["alpha"]
    if word := inputs["word"].strip():
        section["tokens"] = [{"word": word, "start": inputs["starts_from"].strip() or None}]
    if prompts := [line.strip() for line in inputs["prompts"].splitlines() if line.strip()]:
        section["prompts"] = prompts
    if class_folder := inputs["class_folder"].strip():
        section["prior"] = source(class_folder, inputs["size"])
    return {
        "steps": steps,
        "batch_size": inputs["batch_size"],
        "seed": inputs["seed"],
        "lr": inputs["learning_rate"],
        "warmup": WARMUP,
        "precision": training.precision(),
        "checkpoint_every": 200,
        "log_every": max(1, steps // training.LINES),
        "sample_every": inputs["sample_every"] or steps,
        "lora": section,
    }


def image_settings(inputs: dict[str, Any]) -> dict[str, Any]:
    images = inputs.get("images")
    if images is None:
        return source(inputs["folder"], inputs["size"], inputs["caption"])
    if images.shape[-1] != 3:
        raise CascadeError(f"Images have 3 channels, these have {images.shape[-1]}.")
    lines = [line.strip() for line in inputs.get("captions", "").splitlines() if line.strip()]
    stored = training.store_images(inputs["name"], images, lines or [inputs["caption"].strip()])
    return {"source": "folder", "path": str(stored), "size": inputs["size"]}


def source(folder: str, size: int, caption: str = "") -> dict[str, Any]:
    """The images of a folder, or drawn ones."""
    drawn = {HEARTS: ("hearts", hearts.COUNT), SHAPES: ("drawn", SHAPE_COUNT)}
    if folder.strip() in drawn:
        name, count = drawn[folder.strip()]
        return {"source": name, "count": count, "size": size}
    found: dict[str, Any] = {"source": "folder", "path": str(folders.images(folder)), "size": size}
    return {**found, "caption": caption.strip()} if caption.strip() else found


NODES = [CascadeTrainLora]
