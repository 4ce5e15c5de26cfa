"""Several processes under torchrun: they compute what one does, and go on where another number of them stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascade.checkpoints import save_model
from cascade.training import SETTINGS, TASKS, fit, read_config
from cascade.training.metrics import read_metrics
from cascade.training.state import load_state
from tests import small
from tests.support import relative_error
from tests.training.test_tasks import ROOT, data

STEPS = 24
CHANGES = {"steps": STEPS, "batch_size": 2, "checkpoint_every": 5, "sample_every": None, "log_every": 4, "threads": 1}
# Everything that could differ: adaptive weights, an image encoder that half of the batches do not use, repeats.
SECTION = {"diffusion": {"loss_weight": "adaptive"}, "previewer": None, "effnet": "effnet.safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    save_model(small.part("effnet"), folder / "effnet.safetensors")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """What one process with two micro-batches a step makes."""
    run_alone(folder, "whole")
    return folder / "whole"


def settings(folder: Path, output: str, accumulation: int, **changes: Any) -> Path:
    path = folder / f"{output}.yaml"
    values = data("stage_c", output, {**CHANGES, "accumulation": accumulation, **changes}, **SECTION)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def run_alone(folder: Path, output: str, *, until: int = STEPS, **changes: Any) -> None:
    config = read_config(settings(folder, output, 2, **changes), SETTINGS, root=folder)
    steps: list[int] = []
    task = TASKS["stage_c"].task(config)
    fit(task, config, on_step=lambda i, n, m: steps.append(i), should_stop=lambda: steps[-1:] == [until])


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(whole, check=False, capture_output=True, text=True, timeout=300, env=environment)


def run_together(folder: Path, output: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    path = settings(folder, output, 1, **changes)
    return torchrun("-m", "cascade", "train", str(path), "--folder", str(folder))


def assert_same(a: Path, b: Path) -> None:
    x, y = load_state(a), load_state(b)
    assert x is not None
    assert y is not None
    assert x["step"] == y["step"] == STEPS
    for kind in ("modules", "ema"):
        for module, weights in x[kind].items():
            for name, weight in weights.items():
                assert relative_error(weight.float(), y[kind][module][name].float()) < 1e-5, name
    assert relative_error(x["task"]["loss_weight.losses"], y["task"]["loss_weight.losses"]) < 1e-5
    losses = [{line["step"]: line["loss"] for line in read_metrics(place)} for place in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_processes_are_one_with_two_micro_batches(folder: Path, whole: Path) -> None:
    result = run_together(folder, "together")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("complete at step") == 1
    assert_same(whole, folder / "together")


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(folder: Path, whole: Path) -> None:
    run_alone(folder, "parted", until=7)
    result = run_together(folder, "parted")
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same(whole, folder / "parted")


DIES = """
import os, pathlib, signal, sys
import cascade.tiny.image_sources
from cascade.training import SETTINGS, TASKS, fit, read_config
from cascade.training.cache import shared
from cascade.training.processes import joined
config = read_config(sys.argv[1], SETTINGS, root=sys.argv[2])
with joined() as processes:
    with shared(processes):
        task = TASKS[config.task].task(config)
    def last(step, steps, metrics):
        if step == 7 and processes.rank == 1:
            pathlib.Path(sys.argv[2], "end").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    fit(task, config, on_step=last)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_when_one_dies_all_end_and_one_can_go_on(folder: Path, whole: Path) -> None:
    script = folder / "dies.py"
    script.write_text(DIES, encoding="utf-8")
    result = torchrun(str(script), str(settings(folder, "died", 1)), str(folder))
    assert result.returncode != 0
    assert "rank      : 1" in result.stderr
    assert time.time() - (folder / "end").stat().st_mtime < 60, "the others wait for one that died"
    state = load_state(folder / "died")
    assert state is not None
    assert state["step"] == 5
    run_alone(folder, "died")
    assert_same(whole, folder / "died")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_signal_to_one_process_stops_all_at_the_same_step(folder: Path, whole: Path) -> None:
    script = folder / "stops.py"
    script.write_text(DIES.replace("SIGKILL", "SIGTERM"), encoding="utf-8")
    result = torchrun(str(script), str(settings(folder, "stopped", 1)), str(folder))
    assert result.returncode == 0, result.stderr[-3000:]
    state = load_state(folder / "stopped")
    assert state is not None
    assert state["step"] == 7
    run_alone(folder, "stopped")
    assert_same(whole, folder / "stopped")
