"""Trainings towards other targets: what they export says so, and what starts from it follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade.checkpoints import load_model, save_model
from cascade.errors import InvalidConfig
from cascade.models import Process
from cascade.training import TASKS, fit
from tests import small
from tests.training.test_tasks import build, config, folder

__all__ = ["folder"]

V: dict[str, Any] = {"target": "v", "schedule": "adaptive", "shift": 2}


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A Stage C that was trained to predict v, with the encoders of `small`."""
    files = {name: f"parts/{name}.safetensors" for name in ("text_encoder", "image_encoder")}
    frozen = {"train_text_encoder": False, "train_image_encoder": False, "text": None, "image": None, "model": None}
    start = {"start": "parts/stage_c.safetensors", **files, **frozen}
    settings = config(folder, "stage_c", "v", changes={"steps": 2}, diffusion=V, **start)
    fit(TASKS["stage_c"].task(settings), settings)
    save_model(small.part("text_encoder"), folder / "v" / "text_encoder.safetensors")
    return folder / "v" / "stage_c.safetensors"


def test_an_export_says_what_it_was_trained_for(trained: Path) -> None:
    process = load_model(trained).config.process
    assert process == Process(target="v", schedule="linear")
    assert process.shift == 2


def test_a_training_goes_on_as_its_start_was_trained(folder: Path, trained: Path) -> None:
    lora = {"stage_c": str(trained), "text_encoder": "parts/text_encoder.safetensors", "previewer": None}
    section = {"images": {"source": "tiny", "count": 12, "seed": 1, "size": 64}, "effnet": "parts/effnet.safetensors"}
    changes = {"batch_size": 2}
    built = TASKS["lora"].task(_lora(folder, changes, {**section, **lora}))
    assert type(built.diffusion.target).__name__ == "VTarget"
    with pytest.raises(InvalidConfig, match="target is epsilon, and the network was trained with v"):
        TASKS["lora"].task(_lora(folder, changes, {**section, **lora, "diffusion": {"target": "epsilon"}}))


def _lora(folder: Path, changes: dict[str, Any], section: dict[str, Any]) -> Any:
    from cascade.training import SETTINGS, parse_config
    from tests.training.test_tasks import PLAIN

    whole = {"task": "lora", "output": "lora", **PLAIN, **changes, "lora": {"cache": "cache", **section}}
    return parse_config(whole, SETTINGS, where="test", root=folder)


def test_without_a_word_the_released_process_is_trained(folder: Path) -> None:
    assert build(folder, "stage_c").modules["stage_c"].config.process == Process()


def test_a_finetune_may_change_the_target(folder: Path, trained: Path) -> None:
    built = build(folder, "controlnet")
    assert type(built.diffusion.target).__name__ == "EpsilonTarget"
    with pytest.raises(InvalidConfig, match="target is v, and the network was trained with epsilon"):
        build(folder, "controlnet", diffusion={"target": "v"})
