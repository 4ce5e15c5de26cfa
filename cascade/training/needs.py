"""What a training needs of a machine, told from its settings and the headers of its files, before it starts."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from ..checkpoints.detection import choose, detect_parts
from ..checkpoints.sources import open_tensors
from ..errors import CascadeError
from ..models import StageB, StageBConfig, StageC, StageCConfig
from .config import TrainingConfig
from .data import ImageSettings
from .listing import missing_places
from .lora_layers import Adapter, Wiring
from .networks import model_config
from .remote import missing_program

_NEW = {"stage_c": (StageC, StageCConfig), "stage_b": (StageB, StageBConfig)}
_FROZEN = ("stage_c", "text_encoder", "image_encoder", "stage_a", "effnet", "previewer")
"""Files of a task that stay in memory beside what is trained."""
_OPTIMIZER = {"adamw": 8.0, "adamw_8bit": 2.0, "adafactor": 0.0, "prodigy": 16.0}
"""Bytes a trained parameter that an optimizer keeps."""


class Needs(NamedTuple):
    """In bytes, for one process; without the activations of a step, and without the latents of the images.

    trained: number of trained parameters. memory: on the device. disk: the state, twice while it is written, and the
    exported file.
    """

    trained: int
    memory: int
    disk: int


def missing(config: TrainingConfig) -> list[str]:
    """Files and packages that are not there, each with its key."""
    lines = [f"{key}: {path}" for key, path in _inputs(config.settings) if not path.exists()]
    for name, images in _images(config.settings):
        lines += [f"{name}.path: {place}" for place in missing_places(images.places)]
        program = missing_program(images.places)
        lines += [] if program is None else [f"{name}.path: {program}"]
    for optimizer, package in {"adamw_8bit": "bitsandbytes", "prodigy": "prodigyopt"}.items():
        if config.optimizer == optimizer and importlib.util.find_spec(package) is None:
            lines.append(f"optimizer: the package {package}")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        lines.append("device: a graphics card that torch can use")
    return lines


def estimate(config: TrainingConfig) -> Needs | None:
    """None where it cannot be told: a file is missing, or another kind of training."""
    try:
        trained = trained_parameters(config)
        frozen = sum(_parameters(path) for path in _frozen(config))
    except (CascadeError, OSError, ValueError):
        return None
    if trained is None:
        return None
    average = 4 if config.ema > 0 else 0
    halves = config.precision == "bfloat16"
    # Split over the processes, as torchrun started them.
    parts = int(os.environ.get("WORLD_SIZE", "1")) if config.shard and config.task in _NEW else 1
    each = 4 + 4 + _OPTIMIZER[config.optimizer] + (average if config.ema_device == "same" else 0)
    state = trained * (4 + _OPTIMIZER[config.optimizer] + average)
    exported = trained * (4 if config.export_dtype == "float32" else 2)
    return Needs(trained, round(trained * each / parts + frozen * (2 if halves else 4)), round(2 * state + exported))


def _inputs(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """(key, path) of what is read, not of what is written."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _inputs(value, f"{prefix}{name}.")
        elif isinstance(value, Path) and name != "cache":
            yield f"{prefix}{name}", value


def _images(section: BaseModel) -> Iterator[tuple[str, ImageSettings]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, ImageSettings) and not (name == "class_images" and section.class_prompts):  # made then
            yield name, value


def _frozen(config: TrainingConfig) -> list[Path]:
    settings, task = config.settings, config.task
    names = [name for name in _FROZEN if not getattr(settings, f"train_{name}", False)]
    found = [getattr(settings, name, None) for name in names]
    return [path for path in found if isinstance(path, Path)] if task in ("stage_c", "stage_b", "lora") else []


def trained_parameters(config: TrainingConfig) -> int | None:
    """How many numbers are trained; None where it cannot be told. Raises as reading a file does."""
    settings = config.settings
    if config.task == "lora":
        return _of_lora(settings)
    if config.task not in _NEW:
        return None
    if settings.model is not None:
        kind, sizes = _NEW[config.task]
        with torch.device("meta"):
            net: Any = kind(model_config(sizes, settings.model, f"{config.task}: model"))
        count = sum(p.numel() for p in net.parameters())
    else:
        count = _parameters(settings.start, config.task)
    for name in ("text_encoder", "image_encoder") if config.task == "stage_c" else ():
        path = getattr(settings, name)
        if path is None:
            return None  # a new tower, of sizes that transformers knows
        if getattr(settings, f"train_{name}"):
            count += _parameters(path, name)
    return count


def _of_lora(settings: Any) -> int | None:
    if settings.text_encoder_modules:
        return None
    config: Any = choose(detect_parts(open_tensors(settings.stage_c)), "stage_c").inferred.config
    with torch.device("meta"):
        net = StageC(config)
    wiring = Wiring(Adapter())
    if settings.target_modules:
        options: dict[str, Any] = {"rank": settings.rank, "alpha": 1.0, "seed": 0, "dropout": 0.0}
        options |= {"dora": settings.use_dora, "form": settings.kind, "factor": settings.factor}
        wiring.add_changes(net, "stage_c", settings.target_modules, **options)
    return sum(parameter.numel() for parameter in wiring.adapter.parameters())


def _parameters(path: Path, kind: str | None = None) -> int:
    """How many numbers a network in a file has, from the header."""
    part = choose(detect_parts(open_tensors(path)), kind)
    return sum(math.prod(tensor.shape) for tensor in part.tensors.values())
