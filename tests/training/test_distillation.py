"""A few steps in place of many: what the teacher does, what the student learns, what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.adapters import WRITABLE, Applied, attach, read_lora, save_lora
from cascade.checkpoints import load_model, save_model
from cascade.diffusion import sample
from cascade.errors import IncompatibleCheckpoint, InvalidConfig
from cascade.models import Previewer, PreviewerConfig, initialize
from cascade.training import SETTINGS, TASKS, fit, parse_config
from cascade.training.distillation import DistillationTask
from cascade.training.metrics import read_metrics
from tests import small
from tests.support import relative_error

STAGES = ("stage_c", "stage_b")
PLAIN = {"steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2, "sample_every": 4, "ema": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distillation")
    (folder / "parts").mkdir()
    for kind in ("stage_a", "effnet", "text_encoder", "image_encoder", *STAGES):
        save_model(small.part(kind), folder / "parts" / f"{kind}.safetensors")
    save_model(initialize(Previewer(PreviewerConfig(width=8))).eval(), folder / "parts" / "previewer.safetensors")
    return folder


def config(folder: Path, stage: str, output: str, *, changes: dict[str, Any] | None = None, **section: Any) -> Any:
    other = {"stage_c": ("image_encoder", "previewer"), "stage_b": ("effnet", "stage_a")}[stage]
    whole = {
        "images": {"source": "tiny", "count": 8, "seed": 1, "size": 64},
        "cache": "cache",
        "stage": stage,
        "network": f"parts/{stage}.safetensors",
        "text_encoder": "parts/text_encoder.safetensors",
        other[0]: f"parts/{other[0]}.safetensors",
        "decoder": f"parts/{other[1]}.safetensors",
        "sample_steps": 2,
        "teacher_steps": 4,
        "rank": 4,
        **section,
    }
    data = {"task": "distill", "output": output, "device": "cpu", **PLAIN, **(changes or {}), "distill": whole}
    return parse_config(data, SETTINGS, where="test", root=folder)


def build(folder: Path, stage: str, output: str = "none", **more: Any) -> DistillationTask:
    return TASKS["distill"].task(config(folder, stage, output, **more))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def few_steps(task: DistillationTask, net: Any) -> Tensor:
    """Images of the student's steps, from the noise of the first trajectories."""
    rows = torch.arange(3).numpy()
    with torch.no_grad():
        return task._student(net, rows)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("train", ["lora", "network"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_file_does_what_was_trained(folder: Path, tmp_path: Path, stage: str, train: str, precision: str) -> None:
    changes = {"precision": precision, "export_dtype": "float32"}
    settings = config(folder, stage, str(tmp_path), changes=changes, train=train)
    task = TASKS["distill"].task(settings)
    assert fit(task, settings).complete
    assert (tmp_path / "samples" / "step_00000004.png").exists()
    with torch.no_grad():
        trained = few_steps(task, task.net)
    path, original = tmp_path / "few_steps.safetensors", folder / "parts" / f"{stage}.safetensors"
    if train == "network":
        net: Any = load_model(path, dtype=torch.float32)
    else:
        net = load_model(original, dtype=next(task.net.parameters()).dtype)
        attach([Applied(read_lora(path))], **{stage: net})
    close = 1e-4 if precision == "float32" else 0.1
    assert relative_error(few_steps(task, net), trained) < close
    assert relative_error(few_steps(task, load_model(original, dtype=torch.float32)), trained) > 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_the_teacher_samples_as_the_library_does(folder: Path, stage: str) -> None:
    task = build(folder, stage, cfg=3.0)
    rows = torch.arange(8).numpy()
    inputs = task._inputs(rows)
    cond, uncond = (
        {"conditions": task._conditions(each)} for each in (inputs, inputs.unconditional(task._text(task.empty)))
    )
    with task.wiring.off():
        expected = sample(task.net.denoise, task._start(rows), task.teacher, cond=cond, uncond=uncond)
    assert task.teacher.guidance.cfg == 3.0
    assert relative_error(torch.tensor(task.data.rows("states", np.arange(len(task.data)))[:, -1]), expected) < 1e-2


@pytest.mark.parametrize("stage", STAGES)
def test_a_student_of_the_teachers_own_steps_has_nothing_to_learn(folder: Path, stage: str) -> None:
    same, other = (build(folder, stage, sample_steps=4, cfg=cfg) for cfg in (1.0, 6.0))
    losses = [float(task.loss(task.batch(0), generator())[0].detach()) for task in (same, other)]
    assert losses[0] < 0.01 * losses[1]


@pytest.mark.parametrize("stage", STAGES)
def test_the_student_learns(folder: Path, tmp_path: Path, stage: str) -> None:
    changes = {"steps": 60, "learning_rate": 1e-2, "sample_every": None, "checkpoint_every": 60}
    settings = config(folder, stage, str(tmp_path), changes=changes, cfg=4.0)
    task = TASKS["distill"].task(settings)
    fit(task, settings)
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_starts_are_those_of_a_run_and_between_them(folder: Path) -> None:
    task = build(folder, "stage_c", sample_steps=2, teacher_steps=8, changes={"batch_size": 200})
    batch = task.batch(3)
    assert all(torch.equal(x, y) for x, y in zip(batch, task.batch(3), strict=True))
    assert int(((batch.here % 4) == 0).sum()) > 100
    assert set(batch.here.tolist()) == set(range(8))
    assert torch.equal(batch.there, (batch.here + 4).clamp_max(8))


def test_some_trajectories_start_from_another_image(folder: Path) -> None:
    more = {"from_image": 0.5, "effnet": "parts/effnet.safetensors", "teacher_steps": 8}
    task = build(folder, "stage_c", changes={"batch_size": 100}, **more)
    latents, noise = task._latents(None).rows("latents", np.arange(5)), task._start(torch.arange(4).numpy())
    assert len(task.restarted) == len(task.first) == 4
    for row, first in enumerate(task.first):
        level = task.levels[first]
        expected = level.a * torch.tensor(latents[row + 1]).float() + level.b * noise[row]
        assert relative_error(torch.tensor(task.from_images.rows("states", np.array([row]))[0, first]), expected) < 1e-2
    batch = task.batch(0)
    rows = batch.rows[batch.from_image]
    assert 30 < len(rows) < 70
    assert (batch.here[batch.from_image] >= torch.from_numpy(task.first)[rows]).all()
    assert (batch.rows[~batch.from_image] >= 4).any()
    assert task.loss(batch, generator())[0].isfinite()
    with pytest.raises(InvalidConfig, match="from_image is for stage_c, and needs effnet"):
        build(folder, "stage_c", from_image=0.5)


def test_conditions_are_a_mixture(folder: Path) -> None:
    images = {"source": "tiny", "count": 60, "seed": 1, "size": 64}
    task = build(folder, "stage_c", images=images, keep_image=0.5, drop_caption=0.0, drop_caption_with_image=1.0)
    inputs: Any = task._inputs(torch.arange(60).numpy())
    given = inputs.clip_img.flatten(1).any(dim=1)
    assert 15 < int(given.sum()) < 45
    assert [text == "" for text in task.texts] == given.tolist()


def test_what_cannot_be_distilled(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match="teacher_steps 5 is not a multiple of sample_steps 2"):
        build(folder, "stage_c", teacher_steps=5)
    with pytest.raises(InvalidConfig, match="stage_b needs effnet"):
        build(folder, "stage_b", effnet=None)


def test_a_lora_of_stage_b_has_one_format(folder: Path, tmp_path: Path) -> None:
    task = build(folder, "stage_b")
    lora = task._lora(task.modules["adapter"])
    for name in WRITABLE:
        if name == "cascade":
            save_lora(lora, tmp_path / "lora.safetensors", format=name)
            assert read_lora(tmp_path / "lora.safetensors").changes.keys() == {"stage_b"}
        else:
            with pytest.raises(IncompatibleCheckpoint, match="Stage B"):
                save_lora(lora, tmp_path / "other.safetensors", format=name)
