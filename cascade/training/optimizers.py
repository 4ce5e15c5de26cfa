"""Optimizers by name. Those of other libraries are imported when they are chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import InvalidConfig
from .config import TrainingConfig

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True, **config.optimizer_args)


def _adamw_8bit(groups: Groups, config: TrainingConfig) -> torch.optim.Optimizer:
    library = _imported("bitsandbytes", "adamw_8bit")
    return library.optim.AdamW8bit(groups, lr=config.learning_rate, betas=config.betas, **config.optimizer_args)


def _adafactor(groups: Groups, config: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate, **config.optimizer_args)


def _prodigy(groups: Groups, config: TrainingConfig) -> torch.optim.Optimizer:
    library = _imported("prodigyopt", "prodigy")
    return library.Prodigy(groups, lr=config.learning_rate, betas=config.betas, **config.optimizer_args)


OPTIMIZERS: Mapping[str, Callable[[Groups, TrainingConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
}


_ROUNDED = ("adamw", "adafactor")
"""Those that compute each weight's step by itself, in torch: see `rounding`."""


def build_optimizer(groups: Groups, config: TrainingConfig) -> torch.optim.Optimizer:
    """`config.optimizer` for groups of parameters. Raises InvalidConfig: its library or an argument does not exist."""
    if config.weights_dtype == "bfloat16" and config.optimizer not in _ROUNDED:
        raise InvalidConfig(f"weights_dtype: with bfloat16 the optimizer is {' or '.join(_ROUNDED)}")
    try:
        return OPTIMIZERS[config.optimizer](groups, config)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"optimizer_args: {config.optimizer} does not take them: {error}") from error


def _imported(name: str, optimizer: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidConfig(
            f"optimizer: {optimizer} needs the package {name}, which cannot be imported ({error}). Install it with "
            f"`pip install {name}`, or choose adamw or adafactor."
        ) from error
