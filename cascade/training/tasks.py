"""The trainings by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .captions import CaptionsSettings, CaptionsTask
from .config import Settings
from .controlnet import ControlNetSettings, ControlNetTask
from .encoder import EncoderSettings, EncoderTask
from .lora import LoraSettings, LoraTask
from .stage_a import StageASettings, StageATask
from .stage_b import StageBSettings, StageBTask
from .stage_c import StageCSettings, StageCTask


class Training(NamedTuple):
    """A task's settings (the file's section of its name) and what builds it: (config, on_chunk) -> task."""

    settings: type[Settings]
    task: Callable[..., Any]


TASKS: dict[str, Training] = {
    "stage_a": Training(StageASettings, StageATask),
    "captions": Training(CaptionsSettings, CaptionsTask),
    "encoder": Training(EncoderSettings, EncoderTask),
    "stage_b": Training(StageBSettings, StageBTask),
    "stage_c": Training(StageCSettings, StageCTask),
    "controlnet": Training(ControlNetSettings, ControlNetTask),
    "lora": Training(LoraSettings, LoraTask),
}
SETTINGS: dict[str, type[Settings]] = {name: training.settings for name, training in TASKS.items()}
