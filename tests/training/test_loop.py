"""The loop on a small regression: what it computes, how it stops, and that it goes on exactly."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cascade.errors import CascadeError, InvalidConfig, NotWritable, RunConflict
from cascade.training import loop
from cascade.training.config import TrainingConfig
from cascade.training.loop import Outcome, Trainer, fit
from cascade.training.metrics import read_metrics, smoothed
from cascade.training.schedule import learning_rate
from cascade.training.state import STATES, load_state, save_state
from cascade.training.task import BaseTask, Modules, derive_seed
from tests.support import relative_error


class Regression(BaseTask):
    """y = 3 x with dropout, batch norm and noise: everything that could make a continuation differ."""

    def __init__(self, batch_size: int = 4, *, noisy: bool = True) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)] if noisy else [nn.Linear(2, 1)]
        self.modules: dict[str, nn.Module] = {"net": nn.Sequential(*layers)}
        self.batch_size, self.noisy = batch_size, noisy
        self.finished = 0
        self.exported: list[Path] = []
        self.seen = torch.zeros(())

    def batch(self, index: int) -> Tensor:
        return torch.randn(self.batch_size, 2, generator=torch.Generator().manual_seed(derive_seed("data", index)))

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn(batch.shape, generator=generator) if self.noisy else torch.zeros(batch.shape)
        error = self.modules["net"](batch + 0.1 * noise) - 3 * batch.sum(dim=1, keepdim=True)
        self.seen += 1
        return error.square().mean(), {"error": error.abs().mean()}

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def finish(self, modules: Modules) -> None:
        self.finished += 1

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        self.exported.append(folder)


def settings(folder: Path, **changes: Any) -> TrainingConfig:
    values = {
        "steps": 12,
        "batch_size": 4,
        "learning_rate": 0.05,
        "log_every": 2,
        "checkpoint_every": 5,
        "threads": None,
    }
    return TrainingConfig(**{"task": "x", "output": folder, "device": "cpu", **values, **changes})


def run(folder: Path, task: Regression | None = None, **changes: Any) -> Outcome:
    return fit(task or Regression(), settings(folder, **changes))


def weights(folder: Path) -> dict[str, Any]:
    state = load_state(folder)
    assert state is not None
    return {k: state[k] for k in ("modules", "ema", "optimizer", "task", "step")}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_it_learns_and_leaves_its_files(tmp_path: Path) -> None:
    task = Regression(noisy=False)
    outcome = run(tmp_path, task, steps=60, sample_every=30)
    lines = read_metrics(tmp_path)
    assert outcome.complete
    assert lines[-1]["step"] == 60
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert {"loss", "error", "grad_norm", "learning_rate", "seconds", "samples_per_second"} <= set(lines[0])
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step_00000030.png", "step_00000060.png"]
    assert (tmp_path / "loss.png").exists()
    assert task.finished == 1


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 11])
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path: Path, stop: int) -> None:
    run(tmp_path / "whole", accumulation=2)
    config = settings(tmp_path / "parts", accumulation=2)
    steps: list[int] = []
    first = fit(Regression(), config, on_step=lambda i, n, m: steps.append(i), should_stop=lambda: len(steps) >= stop)
    assert (first.step, first.complete) == (stop, False)
    assert fit(Regression(), config, on_step=lambda i, n, m: steps.append(i)).complete
    assert steps == list(range(1, 13))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    volatile = {"seconds", "samples_per_second"}
    a, b = (
        [{k: v for k, v in m.items() if k not in volatile} for m in read_metrics(tmp_path / x)]
        for x in ("whole", "parts")
    )
    assert a == b


def test_a_run_that_died_between_checkpoints_repeats_what_was_lost(tmp_path: Path) -> None:
    run(tmp_path / "whole")

    def die(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == 9:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fit(Regression(), settings(tmp_path / "died"), on_step=die)
    state = load_state(tmp_path / "died")
    assert state is not None
    assert state["step"] == 5
    run(tmp_path / "died")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "died"))
    assert [m["step"] for m in read_metrics(tmp_path / "died")] == [2, 4, 6, 8, 10, 12]


def test_a_complete_run_is_left_alone_and_can_be_made_longer(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "state.pt").stat().st_mtime_ns
    task = Regression()
    assert run(tmp_path, task).complete
    assert (task.finished, (tmp_path / "state.pt").stat().st_mtime_ns) == (0, before)
    assert run(tmp_path, steps=14).step == 14


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(RunConflict, match=r"learning_rate was 0\.05 and is 0\.1"):
        run(tmp_path, learning_rate=0.1)


def test_another_number_of_micro_batches_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(RunConflict, match="a step had 1 micro-batches"):
        run(tmp_path, accumulation=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    outcome = fit(Regression(), settings(tmp_path), on_step=on_step)
    assert (outcome.step, outcome.complete) == (3, False)
    assert weights(tmp_path)["step"] == 3
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(Regression(), settings(tmp_path), on_step=on_step)
    assert load_state(tmp_path) is None


def test_it_runs_beside_the_main_thread(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert outcomes[0].complete


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    class Halves(Regression):
        def batch(self, index: int) -> Tensor:
            return super().batch(index // 2)[index % 2 * 2 :][:2]

    run(tmp_path / "whole", Regression(noisy=False), clip_norm=0)
    run(tmp_path / "halves", Halves(noisy=False), clip_norm=0, accumulation=2, batch_size=2)
    a, b = (weights(tmp_path / x)["modules"]["net"]["0.weight"] for x in ("whole", "halves"))
    assert relative_error(a, b) < 1e-5


def test_the_average_follows_its_definition(tmp_path: Path) -> None:
    trainer = Trainer(Regression(noisy=False), settings(tmp_path, ema=0.5))
    expected = trainer.task.modules["net"].state_dict()["0.weight"].clone()
    for step in range(1, 5):
        trainer._train_step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * trainer.task.modules["net"].state_dict()["0.weight"]
    assert relative_error(trainer.ema.state()["net"]["0.weight"], expected) < 1e-6


def test_the_average_may_begin_late_and_move_rarely(tmp_path: Path) -> None:
    trainer = Trainer(Regression(noisy=False), settings(tmp_path, steps=9, ema=0.5, ema_start=4, ema_every=2))
    net = trainer.task.modules["net"]
    averages, weights = [], []
    for _ in range(8):
        trainer._train_step()
        averages.append(trainer.ema.state()["net"]["0.weight"].clone())
        weights.append(net.state_dict()["0.weight"].clone())
    assert torch.equal(averages[2], averages[1])
    assert torch.equal(averages[3], weights[3])
    decay = 2 / 11
    assert relative_error(averages[5], decay * weights[3] + (1 - decay) * weights[5]) < 1e-6
    assert torch.equal(averages[6], averages[5])


def test_without_an_average_the_weights_are_exported(tmp_path: Path) -> None:
    task = Regression()
    run(tmp_path, task, ema=0)
    trainer = Trainer(task, settings(tmp_path, ema=0))
    state = load_state(tmp_path)
    assert state is not None
    assert state["ema"] == {}
    with trainer.ema.applied() as modules:
        assert modules["net"] is task.modules["net"]
        assert not modules["net"].training
    assert task.modules["net"].training


def test_gradients_are_clipped(tmp_path: Path) -> None:
    trainer = Trainer(Regression(), settings(tmp_path, clip_norm=0.01))
    trainer._train_step()
    norm = torch.stack([p.grad.square().sum() for p in trainer.parameters if p.grad is not None]).sum().sqrt()
    assert norm <= 0.0101
    assert trainer.sums["grad_norm"] > 0.01


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_state(tmp_path: Path) -> None:
    class Breaks(Regression):
        def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            loss, metrics = super().loss(batch, generator)
            return (loss * float("nan") if self.seen > 3 else loss), metrics

    with pytest.raises(CascadeError, match="not finite at step"):
        run(tmp_path, Breaks(), checkpoint_every=3)
    assert weights(tmp_path)["step"] == 3


def test_the_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=110, warmup=10, learning_rate=1.0, learning_rate_final=0.1)
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)


@pytest.mark.parametrize(("scheduler", "middle"), [("linear", 0.5), ("constant", 1.0)])
def test_the_learning_rate_falls_as_it_is_told(tmp_path: Path, scheduler: str, middle: float) -> None:
    config = settings(
        tmp_path, steps=110, warmup=10, learning_rate=1.0, learning_rate_final=0.0, lr_scheduler=scheduler
    )
    assert learning_rate(config, 4) == 0.5
    assert learning_rate(config, 60) == pytest.approx(middle)


def rates(folder: Path) -> list[float]:
    return [line["learning_rate"] for line in read_metrics(folder)]


LONG = {"log_every": 1, "steps": 8, "checkpoint_every": 3, "learning_rate": 0.05}


@pytest.mark.parametrize("scheduler", ["cosine", "linear"])
def test_a_run_made_longer_goes_on_with_the_learning_rate_it_had(tmp_path: Path, scheduler: str) -> None:
    def until(step: int, steps: int) -> None:
        done: list[int] = []
        config = settings(tmp_path, **{**LONG, "steps": steps, "lr_scheduler": scheduler})
        fit(Regression(), config, on_step=lambda i, n, m: done.append(i), should_stop=lambda: done[-1:] == [step])

    until(4, 8)
    until(5, 16)
    until(11, 16)  # once more at the same length: from the state, not from the settings
    until(20, 20)
    found = rates(tmp_path)
    assert all(later <= earlier for earlier, later in itertools.pairwise(found))
    assert found[4] == pytest.approx(learning_rate(settings(tmp_path, **{**LONG, "lr_scheduler": scheduler}), 4))
    assert found[5] > 0.8 * found[4]
    assert found[-1] < 0.005
    until(24, 24)
    assert rates(tmp_path)[-4:] == [pytest.approx(0.0025)] * 4


def test_a_run_made_longer_takes_the_longer_schedule_when_asked(tmp_path: Path) -> None:
    run(tmp_path, **LONG)
    changes = {**LONG, "steps": 16, "stretch_schedule": True}
    run(tmp_path, **changes)
    assert rates(tmp_path)[8:] == pytest.approx([learning_rate(settings(tmp_path, **changes), i) for i in range(8, 16)])


@pytest.mark.parametrize(("optimizer", "rate"), [("adafactor", 0.3), ("prodigy", 1.0)])
def test_another_optimizer_learns_and_goes_on(tmp_path: Path, optimizer: str, rate: float) -> None:
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
    changes = {"optimizer": optimizer, "steps": 60, "learning_rate": rate, "lr_scheduler": "constant"}
    run(tmp_path / "whole", Regression(noisy=False), **changes)
    steps: list[int] = []
    config = settings(tmp_path / "parts", **changes)
    fit(Regression(noisy=False), config, on_step=lambda i, n, m: steps.append(i), should_stop=lambda: len(steps) >= 21)
    fit(Regression(noisy=False), config)
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole")]
    assert losses[-1] < 0.5 * losses[0]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize(("optimizer", "package"), [("adamw_8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_an_optimizer_that_is_not_installed_is_named(tmp_path: Path, optimizer: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(InvalidConfig, match=f"optimizer: {optimizer} needs the package {package}"):
        Trainer(Regression(), settings(tmp_path, optimizer=optimizer))


def test_arguments_that_an_optimizer_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="optimizer_args: adamw does not take them"):
        Trainer(Regression(), settings(tmp_path, optimizer_args={"speed": 3}))


def test_betas_are_those_of_the_settings(tmp_path: Path) -> None:
    [group] = Trainer(Regression(noisy=False), settings(tmp_path, betas=(0.9, 0.95))).optimizer.param_groups[:1]
    assert group["betas"] == (0.9, 0.95)


def test_the_smoothed_loss_does_not_lag() -> None:
    falling = [100.0 - step for step in range(100)]
    assert smoothed(falling) == pytest.approx(falling)
    noisy = [value + (-1) ** place for place, value in enumerate(falling)]
    assert max(abs(a - b) for a, b in zip(smoothed(noisy)[20:-20], falling[20:-20], strict=True)) < 0.1
    assert smoothed([3.0]) == [3.0]


def test_tables_and_biases_do_not_decay(tmp_path: Path) -> None:
    task = Regression()
    task.modules = {"net": nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))}
    groups = Trainer(task, settings(tmp_path, weight_decay=0.1)).optimizer.param_groups
    assert [(g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.1, [(2, 3)]),
        (0.0, [(4, 3), (2,)]),
    ]


class Recorder:
    """What wandb would be sent."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.logged: list[tuple[int, set[str]]] = []
        self.finished = 0

    def init(self, **options: Any) -> Recorder:
        self.options = options
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, set(values)))

    def finish(self) -> None:
        self.finished += 1

    def Image(self, image: Image.Image) -> Image.Image:
        return image


def test_a_tracker_gets_metrics_samples_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", library)
    run(tmp_path, steps=4, sample_every=4, trackers=("wandb",), wandb_project="owls")
    assert (library.options["project"], library.options["id"], library.finished) == ("owls", tmp_path.name, 1)
    assert library.options["config"]["steps"] == 4
    assert [step for step, names in library.logged if "loss" in names] == [2, 4]
    assert [step for step, names in library.logged if "samples" in names] == [4]


def test_tensorboard_gets_them_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path, steps=4, sample_every=4, trackers=("tensorboard",))
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None)
    with pytest.raises(InvalidConfig, match=f"trackers: {name} cannot be imported"):
        run(tmp_path, trackers=(name,))


def test_the_batch_of_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    class Breaks(Regression):
        def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            loss, metrics = super().loss(batch, generator)
            return (loss * float("inf") if self.seen == 6 else loss), metrics

    with pytest.raises(CascadeError, match=r"not finite at step 3 \(micro-batch 5\)"):
        run(tmp_path, Breaks(), accumulation=2, checkpoint_every=2, log_every=5)
    assert weights(tmp_path)["step"] == 2


def test_earlier_states_are_kept_as_the_settings_say(tmp_path: Path) -> None:
    run(tmp_path / "plain")
    assert not (tmp_path / "plain" / STATES).exists()
    run(tmp_path / "kept", keep=2, backup_every=4, checkpoint_every=5)
    kept = sorted(path.name for path in (tmp_path / "kept" / STATES).iterdir())
    assert kept == ["step_00000004", "step_00000008", "step_00000010", "step_00000012"]
    (tmp_path / "kept" / "state.pt").write_bytes((tmp_path / "kept" / STATES / kept[1] / "state.pt").read_bytes())
    run(tmp_path / "kept", keep=2, backup_every=4, checkpoint_every=5)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "kept"))


def test_a_state_is_written_while_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")
    written, seen = threading.Event(), []

    def slow(folder: Path, state: dict[str, Any]) -> None:
        assert written.wait(60)
        save_state(folder, state)

    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        seen.append(load_state(tmp_path / "behind") is None)
        if step == 8:
            written.set()
        if step == 9:
            raise RuntimeError("power cut")

    monkeypatch.setattr(loop, "save_state", slow)
    with pytest.raises(RuntimeError):
        fit(Regression(), settings(tmp_path / "behind", async_save=True), on_step=on_step)
    assert seen[:8] == [True] * 8
    state = load_state(tmp_path / "behind")
    assert state is not None
    assert state["step"] == 5
    run(tmp_path / "behind", async_save=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "behind"))


def test_a_save_in_the_background_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, state: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run(tmp_path, steps=5)
    monkeypatch.setattr(loop, "save_state", full)
    with pytest.raises(NotWritable, match="No space left"):
        run(tmp_path, steps=30, async_save=True)
    assert weights(tmp_path)["step"] == 5
