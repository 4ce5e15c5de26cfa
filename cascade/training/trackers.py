"""Metrics and samples in TensorBoard and wandb too, where the settings ask for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..errors import InvalidConfig
from .config import TrainingConfig


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def image(self, step: int, sheet: Image.Image) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Files in the folder `tensorboard` of the run: `tensorboard --logdir runs` shows them."""

    def __init__(self, config: TrainingConfig) -> None:
        library = _imported("torch.utils.tensorboard", "tensorboard")
        self.writer = library.SummaryWriter(str(config.output / "tensorboard"))
        self.writer.add_text("settings", f"```\n{config.model_dump_json(indent=1)}\n```", 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, sheet: Image.Image) -> None:
        self.writer.add_image("samples", np.asarray(sheet.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of the output folder's name in `wandb_project`; it goes on where the training does."""

    def __init__(self, config: TrainingConfig) -> None:
        self.library, output = _imported("wandb", "wandb"), Path(config.output)
        self.run = self.library.init(
            project=config.wandb_project, name=output.name, id=output.name, resume="allow", dir=str(output),
            config=config.to_dict(),
        )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def image(self, step: int, sheet: Image.Image) -> None:
        self.run.log({"samples": self.library.Image(sheet)}, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: Mapping[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb}


def open_trackers(config: TrainingConfig) -> list[Tracker]:
    """Those of the settings. Raises InvalidConfig where the package of one is not installed."""
    return [TRACKERS[name](config) for name in config.trackers]


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidConfig(
            f"trackers: {package} cannot be imported ({error}). `pip install {package}`, or leave it out."
        ) from error
