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
from torch import nn

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
from .step_memory import Step, StepMemory, Wire, stage_b_step, stage_c_step, step_memory

_NEW: dict[str, tuple[Any, Any]] = {"stage_c": (StageC, StageCConfig), "stage_b": (StageB, StageBConfig)}
_OPTIMIZER = {"adamw": 2.0, "adamw_8bit": 0.5, "adafactor": 0.0, "prodigy": 4.0}
"""What an optimizer keeps, in sizes of the trained weights."""


class Needs(NamedTuple):
    """In bytes, for one process; without the latents of the images, and what torch itself takes.

    trained: number of trained parameters. memory: on the device, at its peak. disk: the state, twice while it is
    written, and the exported file.
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
        count = trained_parameters(config)
        if count is None:
            return None
        sizes = _sizes(config)
        needed = step_memory(lambda: _step(config, sizes), config)
        frozen = _frozen(config)
    except (CascadeError, OSError, ValueError):
        return None
    # Split over the processes, as torchrun started them.
    parts = int(os.environ.get("WORLD_SIZE", "1")) if config.shard else 1
    towers = _lasting(config, count - needed.numbers, each=2)  # trained encoders: with their gradients
    state = count * (_weight(config) * (1 + _OPTIMIZER[config.optimizer]) + (4 if config.ema > 0 else 0))
    exported = count * (4 if config.export_dtype == "float32" else 2)
    return Needs(count, round(peak(needed, config, parts) + towers + frozen), round(2 * state + exported))


def _weight(config: TrainingConfig) -> int:
    """Bytes of a trained number."""
    return 2 if config.weights_dtype == "bfloat16" else 4


def _lasting(config: TrainingConfig, count: int, *, each: int = 1) -> float:
    """Bytes of trained numbers, of what the optimizer keeps of them, and of their average."""
    average = 4 if config.ema > 0 and config.ema_device == "same" else 0
    return count * (_weight(config) * (each + _OPTIMIZER[config.optimizer]) + average)


def peak(needed: StepMemory, config: TrainingConfig, parts: int = 1) -> float:
    """Bytes of a training with these steps, in each of the processes over which its networks are split."""
    lasting = needed.frozen + _lasting(config, needed.numbers)
    if parts == 1:
        return lasting + needed.peak
    return (lasting + needed.gradients) / parts + needed.activations


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
        # Class images that are generated are not there yet.
        generated = name == "class_images" and getattr(section, "class_prompts", None)
        if isinstance(value, ImageSettings) and not generated:
            yield name, value


def _frozen(config: TrainingConfig) -> int:
    """Bytes of what stays in memory beside the network that is trained, or through which a LoRA is."""
    settings, stream = config.settings, config.settings.images.stream
    if config.task == "stage_b":
        held = {"stage_a": True, "effnet": True, "text_encoder": stream}
    else:
        # A LoRA's text encoder goes once the captions are embedded, if nothing of it is trained.
        reads = stream or any(getattr(settings, name, True) for name in ("tokens", "words"))
        held = {"text_encoder": reads, "image_encoder": True, "previewer": True, "effnet": stream}
    halves = ("text_encoder", "image_encoder") if config.precision == "bfloat16" and config.task != "stage_b" else ()
    found = 0
    for name, stays in held.items():
        path = getattr(settings, name, None)
        if stays and isinstance(path, Path) and not getattr(settings, f"train_{name}", False):
            found += _parameters(path, name) * (2 if name in halves else 4)
    return found


def trained_parameters(config: TrainingConfig) -> int | None:
    """How many numbers are trained; None where it cannot be told. Raises as reading a file does."""
    settings = config.settings
    if config.task not in (*_NEW, "lora") or getattr(settings, "text_encoder_modules", None):
        return None
    if config.task == "lora":
        with torch.device("meta"):
            return sum(p.numel() for p in _wired(settings)(StageC(_sizes(config))).parameters())
    with torch.device("meta"):
        count = sum(p.numel() for p in _NEW[config.task][0](_sizes(config)).parameters())
    for name in ("text_encoder", "image_encoder") if config.task == "stage_c" else ():
        path = getattr(settings, name)
        if path is None:
            return None  # a new tower, of sizes that transformers knows
        count += _parameters(path, name) if getattr(settings, f"train_{name}") else 0
    return count


def _sizes(config: TrainingConfig) -> Any:
    """The config of the network that a training is about. Raises as reading a file does."""
    settings = config.settings
    if config.task == "lora":
        return choose(detect_parts(open_tensors(settings.stage_c)), "stage_c").inferred.config
    if settings.model is not None:
        return model_config(_NEW[config.task][1], settings.model, f"{config.task}: model")
    return choose(detect_parts(open_tensors(settings.start)), config.task).inferred.config


def _wired(settings: Any) -> Wire:
    def wire(net: nn.Module) -> nn.Module:
        wiring = Wiring(Adapter())
        if settings.target_modules:
            options: dict[str, Any] = {"rank": settings.rank, "alpha": 1.0, "seed": 0, "dropout": settings.dropout}
            options |= {"dora": settings.use_dora, "form": settings.kind, "factor": settings.factor}
            wiring.add_changes(net, "stage_c", settings.target_modules, **options)
        return wiring.adapter

    return wire


def _step(config: TrainingConfig, sizes: Any) -> Step:
    settings, size = config.settings, config.settings.images.size
    if config.task == "stage_b":
        return stage_b_step(config, sizes, side=size // 4, effnet=max(settings.effnet_sizes) // 32)
    tokens = 77 * settings.caption_chunks
    if config.task == "stage_c":
        return stage_c_step(config, sizes, side=settings.effnet_size // 32, tokens=tokens, each=settings.repeats)
    side = (settings.effnet_size or max(32, size * 3 // 4)) // 32
    if settings.class_images is not None:  # each batch has as many of them
        config = config.model_copy(update={"batch_size": 2 * config.batch_size})
    return stage_c_step(config, sizes, side=side, tokens=tokens, wire=_wired(settings))


def _parameters(path: Path, kind: str | None = None) -> int:
    """How many numbers a network in a file has, from the header."""
    part = choose(detect_parts(open_tensors(path)), kind)
    return sum(math.prod(tensor.shape) for tensor in part.tensors.values())
