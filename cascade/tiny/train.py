"""The tiny cascade from scratch: every part of its recipe in turn, each continuing where it was stopped.

Importing this module lets settings files name the tiny cascade's images (`source: tiny`) and networks
(`stage_c: tiny:stage_c`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import InvalidConfig
from ..files import write_atomically
from ..training import SETTINGS, ProgressBars, TrainingConfig, read_config, train
from ..training.config import PATH_SCHEMES
from . import image_sources as image_sources  # registers what the recipe's images are
from . import path

log = logging.getLogger("cascade")

PARTS = (
    "stage_a",
    "encoder",
    "encoder_detail",
    "stage_c_start",
    "captions_shapes",
    "captions",
    "stage_c",
    "stage_b_start",
    "stage_b",
    "controlnet_canny",
    "controlnet_inpainting",
    "controlnet_super_resolution",
    "high_res_guides",
    "lora_heart",
    "turbo_stage_c",
    "turbo_stage_b",
    "instruct",
    "t2i_sketch",
    "prior",
    "ip_adapter",
)
"""In an order in which each finds what it builds on, and what a later one improves stands after the first."""

RECIPE = Path(__file__).parent / "recipe"
SMOKE = RECIPE / "smoke.yaml"

_TRAINED_IN = {
    "effnet": "encoder_detail",
    "previewer": "encoder_detail",
    "text_encoder": "stage_c",
    "image_encoder": "stage_c",
}
"""Network -> the part of the recipe that trains it last, where that has another name."""


def trained_or_shipped(kind: str, root: Path) -> Path:
    """The file that `tiny:KIND` means in a settings file: the one trained under `root`, else the shipped one.

    Raises ValueError for a kind that the tiny cascade does not have.
    """
    shipped = path(kind)
    trained = root / _TRAINED_IN.get(kind, shipped.stem) / shipped.name
    if trained.exists():
        return trained
    log.info("%s: not trained yet, the shipped one is used", trained)
    return shipped


PATH_SCHEMES["tiny"] = trained_or_shipped


def train_tiny(
    folder: Path,
    *,
    parts: Sequence[str] = PARTS,
    smoke: bool = False,
    changes: Mapping[str, Any] | None = None,
    install: Path | None = None,
    progress: ProgressBars | None = None,
) -> bool:
    """Train `parts` of the tiny cascade into subfolders of `folder`; true when all of them are complete.

    A part that is complete is left as it is. `smoke` replaces sizes and steps by those of recipe/smoke.yaml.
    `changes` go to every part. `install` is a folder that gets a copy of all files at the end.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise InvalidConfig(f"the recipe has no part {unknown[0]!r}; it has {', '.join(PARTS)}")
    for part in parts:
        config = part_config(part, folder, smoke=smoke, changes=changes)
        outcome = train(config, progress=progress)
        log.info("%s: %s at step %d", part, "complete" if outcome.complete else "stopped", outcome.step)
        if not outcome.complete:
            return False
    if install is not None:
        install_weights(folder, install)
    return True


def part_config(
    part: str, folder: Path, *, smoke: bool = False, changes: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """The settings of one part, with its paths inside `folder`."""
    short = _smoke_changes(part) if smoke else {}
    return read_config(RECIPE / f"{part}.yaml", SETTINGS, root=folder, changes={**short, **(changes or {})})


def _smoke_changes(part: str) -> dict[str, Any]:
    every = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    return {**every["all"], **every[part]}


def install_weights(folder: Path, target: Path) -> None:
    """Copy the weights of all parts from a recipe's folder to `target`."""
    for part in PARTS:
        for file in sorted((folder / part).glob("*.safetensors")):
            write_atomically(target / file.name, lambda path, source=file: shutil.copyfile(source, path))
