"""Networks split over two processes: they compute what one process does, and go on in another number of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cascade.checkpoints import load_model, save_model
from cascade.errors import BrokenCheckpoint, InvalidConfig, NotWritable
from cascade.models import Previewer, PreviewerConfig, initialize
from cascade.training import SETTINGS, TASKS, fit, read_config
from cascade.training.loop import Trainer
from cascade.training.metrics import read_metrics
from cascade.training.state import STATE_FILE, STATES, load_state
from tests import small
from tests.support import relative_error
from tests.training import test_lora
from tests.training.test_lock import full_disk
from tests.training.test_processes import (
    CHANGES,
    DIES,
    STEPS,
    folder,
    run_alone,
    run_together,
    settings,
    torchrun,
    whole,
)
from tests.training.test_tasks import IMAGES, SECTIONS

__all__ = ["folder", "whole"]


def trained(folder: Path, output: str) -> Trainer:
    """The state of a run, opened in this process."""
    config = read_config(settings(folder, output, 2, shard=True), SETTINGS, root=folder)
    trainer = Trainer(TASKS["stage_c"].task(config), config)
    trainer.resume()
    return trainer


def assert_same(folder: Path, output: str) -> None:
    """A split run is the one of `whole`."""
    expected, found = load_state(folder / "whole"), trained(folder, output)
    assert expected is not None
    assert expected["step"] == found.step == STEPS
    for kind, modules in (("modules", found.task.modules), ("ema", found.ema.own)):
        for module, weights in expected[kind].items():
            for name, weight in modules[module].state_dict().items():
                # Softmax does not see what is the same for all keys: the gradient of their bias is rounding alone.
                if not name.endswith(("to_k.bias", "k_proj.bias")):
                    assert relative_error(weight.float(), weights[name].float()) < 1e-5, name
    losses = [{line["step"]: line["loss"] for line in read_metrics(folder / name)} for name in ("whole", output)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    net = load_model(folder / output / "stage_c.safetensors")
    for name, weight in load_model(folder / "whole" / "stage_c.safetensors").state_dict().items():
        if not name.endswith("to_k.bias"):
            assert relative_error(net.state_dict()[name].float(), weight.float()) < 1e-3


def test_two_processes_with_parts_are_one_with_all(folder: Path, whole: Path) -> None:
    result = run_together(folder, "split", shard=True, keep=2, backup_every=10)
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same(folder, "split")
    kept = sorted(path.name for path in (folder / "split" / STATES).iterdir())
    assert kept == ["step_00000010", "step_00000020", "step_00000024"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_from_two_to_one_and_back_after_one_died(folder: Path, whole: Path) -> None:
    script = folder / "dies_split.py"
    script.write_text(DIES, encoding="utf-8")
    result = torchrun(str(script), str(settings(folder, "parted_split", 1, shard=True)), str(folder))
    assert result.returncode != 0
    assert "rank      : 1" in result.stderr
    run_alone(folder, "parted_split", until=14, shard=True)
    state = load_state(folder / "parted_split")
    assert state is not None
    assert state["step"] == 14
    result = run_together(folder, "parted_split", shard=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same(folder, "parted_split")


def test_a_state_without_its_parts_is_named(folder: Path) -> None:
    run_alone(folder, "lost", until=2, shard=True)
    for path in (folder / "lost" / STATES).rglob("*.distcp"):
        path.unlink()
    with pytest.raises(BrokenCheckpoint, match="delete it to restart"):
        trained(folder, "lost")


def test_an_average_elsewhere_is_refused(folder: Path) -> None:
    config = read_config(settings(folder, "refused", 1, shard=True, ema_device="cpu"), SETTINGS, root=folder)
    with pytest.raises(InvalidConfig, match="ema_device"):
        Trainer(TASKS["stage_c"].task(config), config)


def test_one_process_alone_is_not_split(folder: Path) -> None:
    found = trained(folder, "alone")
    assert found.sharding is None
    assert all(type(parameter) is torch.nn.Parameter for parameter in found.parameters)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_while_parts_are_written_leaves_the_last_state(folder: Path, background: bool) -> None:
    output = f"full_{background}"
    run_alone(folder, output, until=6, shard=True, async_save=background)
    before = (folder / output / STATE_FILE).read_bytes()
    with pytest.raises(NotWritable, match="could not be written"), full_disk(20_000):
        run_alone(folder, output, shard=True, async_save=background, export_dtype="float16")
    assert (folder / output / STATE_FILE).read_bytes() == before
    assert trained(folder, output).step == 6


def test_parts_are_written_while_the_training_goes_on(folder: Path, whole: Path) -> None:
    run_alone(folder, "behind", until=7, shard=True, async_save=True)
    run_alone(folder, "behind", shard=True, async_save=True)
    assert_same(folder, "behind")


FROZEN: dict[str, dict[str, Any]] = {
    "lora": {**test_lora.BASE, **test_lora.VARIANTS["everything"], "images": IMAGES},
    "controlnet": {**SECTIONS["controlnet"], "images": IMAGES, "cache": "cache"},
}
"""Trainings through a Stage C that stays as it is."""


@pytest.mark.parametrize(
    ("task", "precision"), [("lora", "bfloat16"), pytest.param("controlnet", "float32", marks=pytest.mark.slow)]
)
def test_a_base_that_is_not_trained_is_split_too(folder: Path, task: str, precision: str) -> None:
    for name in ("stage_c", "effnet", "text_encoder"):
        save_model(small.part(name), folder / "parts" / f"{name}.safetensors")
    save_model(initialize(Previewer(PreviewerConfig(width=8))).eval(), folder / "parts" / "previewer.safetensors")
    changes = {**CHANGES, "steps": 4, "checkpoint_every": 2, "sample_every": 4, "precision": precision}
    changes |= {"learning_rate": 1e-3, "device": "cpu"}
    name = f"{task}_{precision}"

    def written(output: str, **more: Any) -> Path:
        path = folder / f"{output}.yaml"
        values = {"task": task, "output": output, **changes, **more, task: FROZEN[task]}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    config = read_config(written(name, accumulation=2), SETTINGS, root=folder)
    fit(TASKS[task].task(config), config)
    path = written(f"{name}_split", shard=True)
    result = torchrun("-m", "cascade", "train", str(path), "--folder", str(folder))
    assert result.returncode == 0, result.stderr[-3000:]
    assert (folder / f"{name}_split" / "samples" / "step_00000004.png").exists()
    config = read_config(written(f"{name}_split", shard=True, accumulation=2), SETTINGS, root=folder)
    found = Trainer(TASKS[task].task(config), config)
    found.resume()
    expected = load_state(folder / name)
    assert expected is not None
    assert expected["step"] == found.step == 4
    for module, net in found.task.modules.items():
        for key, weight in net.named_parameters():
            other = expected["modules"][module][key]
            assert torch.equal(weight, other) or relative_error(weight.detach(), other) < 1e-5, key
