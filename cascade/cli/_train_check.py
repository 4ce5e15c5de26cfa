"""`train --check FILE`: what the keys of a settings file mean here, what is missing, and what the training needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training import TrainingConfig


def parsed(data: Mapping[str, Any], where: str, root: Path, *, stream: bool | None = None) -> TrainingConfig:
    """Settings of ours or of the released training. Raises InvalidConfig, with every key that has no counterpart.

    stream: replaces the `stream` of a released training's file.
    """
    from ..errors import InvalidConfig
    from ..training import SETTINGS, parse_config
    from ..training.reference import is_reference, translate

    if is_reference(data):
        translation = translate(data if stream is None else {**data, "stream": stream}, where)
        if translation.problems:
            problems = "; ".join(f"{line.key}: {line.becomes}" for line in translation.problems)
            raise InvalidConfig(f"{where}: {problems}. --check shows all keys")
        data = translation.values
    return parse_config(data, SETTINGS, where=where, root=root)


def run(data: Mapping[str, Any], where: str, root: Path) -> int:
    """Print it; 1 where a key is unknown or asks for something that does not exist here."""
    from ..training.reference import is_reference, translate

    problems = []
    if is_reference(data):
        translation = translate(data, where)
        problems = translation.problems
        width = max(len(line.key) for line in translation.lines)
        for line in translation.lines:
            print(f"{line.key:{width}}  {'NOT POSSIBLE: ' if line.problem else ''}{line.becomes}")
    if problems:
        print(f"{where}: {len(problems)} of its keys cannot be used: {', '.join(line.key for line in problems)}")
        return 1
    _report(parsed(data, where, root))
    return 0


def _report(config: TrainingConfig) -> None:
    from ..training.needs import estimate, missing

    print(f"Training: {config.task}, {config.steps} steps; output: {config.output}")
    lines = missing(config)
    print("Missing here: " + ("nothing" if not lines else ""))
    for line in lines:
        print(f"  {line}")
    needs = estimate(config)
    if needs is None:
        print("Memory and disk: not known for this training, or before its files are here")
        return
    print(f"Trained parameters: {needs.trained / 1e6:,.1f} million")
    print(f"Memory per card: {needs.memory / 1e9:.2f} GB, with {config.batch_size} images at once")
    print(f"Disk: {needs.disk / 1e9:.2f} GB, and the latents of the images")
