"""Trainings of the library inside ComfyUI: memory, progress, interruption."""

from __future__ import annotations

import gc
import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ...cascade.errors import CascadeError, RunConflict, printable
from ...cascade.files import write_atomically, write_if_changed
from ...cascade.images import from_pillow, open_image, read_file, to_pillow
from ...cascade.training import SETTINGS, TASKS, fit, parse_config
from ...cascade.training.lock import exclusive, writing
from ...cascade.training.metrics import plot_loss
from . import folders

LINES = 60
"""Points of the loss plot, at most."""


@dataclass(frozen=True)
class Trained:
    """The result of a training: its file, loss and samples as the host's images [1, H, W, 3], lines about the run."""

    file: Path
    loss: Tensor
    samples: Tensor
    report: str


def image_stamp(name: str) -> tuple[object, ...] | None:
    """Changes when the images of a training do; None where it cannot be told."""
    try:
        return folders.image_stamp(folders.images(name), comfy.model_management.processing_interrupted)
    except CascadeError:
        return None  # the training itself says why


@contextmanager
def run_of(kind: str, name: str) -> Iterator[None]:
    """The training of this name, alone: its names are checked, and its folder is held. `kind` is that of its file.

    Raises:
        CascadeError: a name that no file can have, or another process trains there.
    """
    folders.new_file(kind, name)
    with exclusive(folders.run_folder(name)):
        yield


def train(kind: str, name: str, data: dict[str, Any], *, made: str, restart: bool) -> Trained:
    """Run a training, or continue the one of this name, and copy its file to the folder of its kind.

    Args:
        kind: of the file.
        name: of the file, and of the folder that keeps the state.
        data: keys of a training file, without output and device.
        made: the file that the training writes, without its ending.
        restart: delete the run of this name first.

    Raises:
        CascadeError: settings or images with which it cannot run.
        InterruptProcessingException: it was stopped; its state is saved.
    """
    target, output = folders.new_file(kind, name), folders.run_folder(name)
    source = output / f"{made}.safetensors"
    if target.exists() and not source.exists():
        raise CascadeError(
            f"{target.name} is in models/{folders.of_kind(kind)[0]} already, and there is no training of this name "
            "that wrote it: give another name, or move that file."
        )
    if restart and output.exists():
        _delete_run(output)
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    device = str(comfy.model_management.get_torch_device())
    whole = {"output": str(output), "device": device, **data}
    # A training seeds the global generators, which other nodes use too.
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        try:
            report = _run(whole)
        finally:
            gc.collect()
            comfy.model_management.soft_empty_cache()
    # Loaded networks may have the old file mapped: it is replaced, never changed in place.
    with writing(target.parent):
        write_atomically(target, lambda path: shutil.copyfile(source, path))
    return Trained(target, _image(plot_loss(output)), _last_samples(output), f"{target}\n{report}")


def _last_samples(output: Path) -> Tensor:
    """Read as any image is: ComfyUI's page may upload files into the output folder."""
    samples = sorted((output / "samples").glob("step_*.png"))
    if not samples:
        return _image(None)
    with open_image(read_file(samples[-1])) as image:
        return _image(image)


def _run(whole: Mapping[str, Any]) -> str:
    config = parse_config(whole, SETTINGS, where=f"training of {whole['task']}", root=Path())
    bar = comfy.utils.ProgressBar(config.steps)

    def look(*_: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        bar.update_absolute(step, steps)

    try:
        task = TASKS[config.task].task(config, on_chunk=look, on_image=look)
        outcome = fit(task, config, on_step=on_step, should_stop=comfy.model_management.processing_interrupted)
    except RunConflict as error:
        raise CascadeError(f"{error} Or set existing_run to 'restart', or give another name.") from error
    # Its state is saved, and the next run continues from there.
    comfy.model_management.throw_exception_if_processing_interrupted()
    loss = outcome.metrics.get("loss")
    settings = config.settings
    rates = f"learning rate {config.learning_rate:g}"
    if config.task == "lora" and settings.tokens:
        rates += f", of the token {settings.token_learning_rate:g}"
    about = "about " if settings.images.aspect_ratios else ""
    lines = [
        f"{len(task.data.captions)} images at {about}{settings.images.size} x {settings.images.size}",
        f"{outcome.step} steps" + ("" if loss is None else f", loss {loss:.4g}"),
        rates,
    ]
    return "\n".join([*lines, *task.problems])


def _delete_run(output: Path) -> None:
    """Delete the files that a run wrote, and no others."""
    for pattern in ("state.pt", "metrics.jsonl", "loss.png", "*.safetensors", "samples/step_*.png"):
        for path in output.glob(pattern):
            path.unlink()


def store_images(name: str, images: Tensor, captions: list[str]) -> Path:
    """Write a batch of images [B, H, W, 3] and their captions to the folder of a run; that folder.

    Raises:
        CascadeError: fewer captions than images, unless it is one for all.
    """
    if len(captions) not in (0, 1, len(images)):
        raise CascadeError(
            f"{len(images)} images need as many lines of captions, or one for all; there are {len(captions)}."
        )
    place = folders.run_folder(name) / "images"
    with writing(place):
        files: dict[str, bytes] = {}
        for number, image in enumerate(images):
            made = io.BytesIO()
            to_pillow(image.movedim(-1, 0)).save(made, "PNG")
            files[f"{number:04}.png"] = made.getvalue()
            if captions:
                text = captions[number] if len(captions) > 1 else captions[0]
                files[f"{number:04}.txt"] = printable(text).encode()
        for path in place.glob("[0-9][0-9][0-9][0-9]*.*"):
            if path.name not in files:
                path.unlink()
        for file, content in files.items():
            write_if_changed(place / file, content)
    return place


def _image(image: Image.Image | None) -> Tensor:
    """As the host's; white, 8 x 8, where there is none."""
    return torch.ones(1, 8, 8, 3) if image is None else from_pillow(image).movedim(1, -1)


def precision() -> str:
    """The number format of trainings on this device."""
    device = comfy.model_management.get_torch_device()
    fast = device.type == "cuda" and comfy.model_management.should_use_bf16(device)
    return "bfloat16" if fast else "float32"
