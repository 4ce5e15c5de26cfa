"""The trainings by name, and how one is run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from .cache import shared
from .captions import CaptionsSettings, CaptionsTask
from .config import Settings, TrainingConfig
from .controlnet import ControlNetSettings, ControlNetTask
from .distillation import DistillationSettings, DistillationTask
from .encoder import EncoderSettings, EncoderTask
from .high_res import HighResSettings, HighResTask
from .instruct import InstructSettings, InstructTask
from .ip_adapter import IPAdapterSettings, IPAdapterTask
from .lock import exclusive
from .loop import Outcome, fit
from .lora import LoraSettings, LoraTask
from .prior import PriorSettings, PriorTask
from .processes import joined
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
    "high_res_guides": Training(HighResSettings, HighResTask),
    "lora": Training(LoraSettings, LoraTask),
    "distill": Training(DistillationSettings, DistillationTask),
    "instruct": Training(InstructSettings, InstructTask),
    "ip_adapter": Training(IPAdapterSettings, IPAdapterTask),
    "prior": Training(PriorSettings, PriorTask),
}
SETTINGS: dict[str, type[Settings]] = {name: training.settings for name, training in TASKS.items()}

ProgressBars = Callable[[str, str], Callable[..., None]]
"""(title, unit) -> callback (done, total, metrics)."""


def train(config: TrainingConfig, *, progress: ProgressBars | None = None) -> Outcome:
    """Run one training: compute what is cached, train, export. Raises as its task and as `fit`."""
    with joined() as processes, exclusive(config.output) if processes.first else nullcontext():
        bars = progress if processes.first else None
        with shared(processes):
            task = TASKS[config.task].task(config, bars(f"{config.task} images", "image") if bars else None)
        return fit(task, config, on_step=bars(config.task, "step") if bars else None)
