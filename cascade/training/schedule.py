"""The learning rate of each step."""

from __future__ import annotations

import math
from typing import NamedTuple

from .config import TrainingConfig


class Extension(NamedTuple):
    """Where a run was made longer: the step, and the part of `learning_rate` that it had there."""

    step: int
    share: float


def learning_rate(config: TrainingConfig, step: int, extension: Extension | None = None) -> float:
    """Of step number `step`, counted from 0."""
    return config.learning_rate * _share(config, step, extension)


def extended(config: TrainingConfig, before: int, step: int, extension: Extension | None) -> Extension | None:
    """How a run of `before` steps, the last time made longer at `extension`, goes on from `step` to `config.steps`.

    The rate stays where it is and falls from there: it does not rise again, as it would on the schedule of the new
    length. That one a run takes with `stretch_schedule`.
    """
    if before == config.steps or step < config.warmup:
        return extension
    if config.stretch_schedule:
        return None
    return Extension(step, _share(config.model_copy(update={"steps": before}), step, extension))


def _share(config: TrainingConfig, step: int, extension: Extension | None) -> float:
    """Linear warm-up, then the fall from 1, or from an extension's rate, to `learning_rate_final`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    begin, top = extension or (config.warmup, 1.0)
    progress = min(1.0, (step - begin) / max(1, config.steps - begin))
    falls = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return config.learning_rate_final + (top - config.learning_rate_final) * falls[config.lr_scheduler]
