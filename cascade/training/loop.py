"""The loop that every training shares: AdamW, accumulation, clipping, an average of the weights, exact continuation."""

from __future__ import annotations

import logging
import math
import operator
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BrokenCheckpoint, CascadeError, InvalidConfig, RunConflict
from ..files import remove_abandoned, write_atomically
from .average import Average
from .background import Background, copied
from .config import TrainingConfig, incompatible_changes
from .lock import exclusive, writing
from .metrics import append_metrics, plot_loss, truncate_metrics
from .optimizers import build_optimizer
from .processes import Processes, saving_group
from .rounding import rounded_step, to_bfloat16
from .schedule import Extension, extended, learning_rate
from .signals import stop_signals
from .state import STATE_FILE, STATES, keep_states, load_state, place_of, save_state
from .task import Task, derive_seed, pick_device
from .trackers import open_trackers

log = logging.getLogger("cascade")

OnTrainingStep = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: at which step, whether that is the end, and its last metrics."""

    step: int
    complete: bool
    metrics: dict[str, float]


def fit(
    task: Task,
    config: TrainingConfig,
    *,
    on_step: OnTrainingStep | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Train until `config.steps`, going on from the state in `config.output` if there is one.

    `on_step(step, steps, metrics)` is called after every step. When `should_stop()` is true, and on the first ctrl-C
    or SIGTERM, the run saves its state and returns; a second ctrl-C raises KeyboardInterrupt at once.
    Raises RunConflict when the saved state belongs to another configuration, FolderInUse when another process trains
    there, NotWritable when the disk is full, CascadeError when the loss is not finite.
    """
    processes = Processes()
    with exclusive(config.output) if processes.first else nullcontext():
        trainer = Trainer(task, config)
        trainer.resume()
        try:
            with stop_signals(launched=processes.size > 1) as stopped:
                return trainer.run(on_step, lambda: stopped() or (should_stop is not None and should_stop()))
        finally:
            trainer.end_save()  # before another process may train there


def _sharding(task: Task, average: Average, config: TrainingConfig) -> Any:
    """Imported here: a torch of hosts may be older than what it needs."""
    from .sharding import Sharding

    return Sharding(task, average, config)


class _Loss(nn.Module):
    """A task's loss as a module's forward pass, which is what torch's parallel engines take."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.networks = task, nn.ModuleDict(task.modules)

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.loss(batch, generator)


class Trainer:
    """One run: the task's networks, their average, the optimizer and the counters."""

    def __init__(self, task: Task, config: TrainingConfig) -> None:
        self.task, self.config = task, config
        self.processes = processes = Processes()
        self.device = pick_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.validate_every and not config.held_out:
            raise InvalidConfig("validate_every needs held_out, the number of images that are not trained on")
        for module in task.modules.values():
            module.train()
        self.micro_batches = config.accumulation * processes.size
        if config.weights_dtype == "bfloat16" and config.precision != "bfloat16":
            raise InvalidConfig("weights_dtype: bfloat16 needs precision: bfloat16")
        if config.weights_dtype == "bfloat16" and config.shard:
            raise InvalidConfig("weights_dtype: with shard the weights are float32")
        if config.shard and config.ema_device == "cpu":
            raise InvalidConfig("ema_device: with shard the average lies where its network does; set offload instead")
        split = config.shard and processes.size > 1
        self.ema = Average(task.modules if processes.first or split else {}, config)
        if config.weights_dtype == "bfloat16":
            to_bfloat16(task.modules.values())  # after the average was made: it is float32
        self.sharding = _sharding(task, self.ema, config) if split else None
        self.parameters = [p for m in task.modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self._groups(), config)
        self.loss = _Loss(task) if split else processes.parallel(_Loss(task))
        self.step, self.seconds, self.finished = 0, 0.0, False
        self.extension: Extension | None = None
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.broken = torch.tensor(-1, device=self.device)
        """The first micro-batch whose loss was not finite. Looked at where a graphics card is waited for anyway."""
        self.metrics: dict[str, float] = {}
        self.trackers = open_trackers(config) if processes.first else []
        self.saving = Background()

    def run(self, on_step: OnTrainingStep | None, should_stop: Callable[[], bool]) -> Outcome:
        config, saved = self.config, self.step
        # A network that is split calculates in all processes; else the first one alone has the average.
        acts = self.processes.first or self.sharding is not None
        if self.finished and self.step >= config.steps:
            return Outcome(self.step, True, self.metrics)
        while self.step < config.steps and not self.processes.any(should_stop()):
            start = time.perf_counter()
            self._train_step()
            self.seconds += time.perf_counter() - start
            if self.step % config.log_every == 0 or self.step == config.steps:
                self._log()
            if on_step is not None:
                on_step(self.step, config.steps, self.metrics)
            if acts and config.sample_every and self.step % config.sample_every == 0:
                self.sample()
            if acts and config.validate_every and self.step % config.validate_every == 0:
                self.validate()
            if self._is_saved_at(self.step) and self.step < config.steps:
                self._settle()
                if acts:
                    self.save()
                saved = self.step
            self.end_save(wait=False)
        complete = self.finished = self.step >= config.steps
        self._settle()
        if acts and complete:
            with self.ema.applied() as modules, self._in_halves(config.weights_dtype):
                self.task.finish(modules)
        if acts and (saved != self.step or complete):
            self.save()
        self.end_save()
        self.processes.wait()
        for tracker in self.trackers:
            tracker.close()
        return Outcome(self.step, complete, self.metrics)

    def _is_saved_at(self, step: int) -> bool:
        config = self.config
        return step % config.checkpoint_every == 0 or bool(config.backup_every and step % config.backup_every == 0)

    def _train_step(self) -> None:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, self.extension)
        self.optimizer.zero_grad(set_to_none=True)
        for micro in range(config.accumulation):
            index = self.step * self.micro_batches + micro * self.processes.size + self.processes.rank
            # Layers with noise of their own (dropout) use the global generator: its seed too follows from the step.
            torch.manual_seed(derive_seed(config.seed, "layers", index))
            generator = torch.Generator(self.device).manual_seed(derive_seed(config.seed, "loss", index))
            batch = self.task.batch(index)
            last = micro == config.accumulation - 1
            if self.sharding is not None:
                self.sharding.synchronize(last)
            with nullcontext() if last else self.processes.alone(self.loss):
                with self._in_halves(config.precision):
                    loss, metrics = self.loss(batch, generator)
                (loss / config.accumulation).backward()
            self._add(config.accumulation, loss=loss, **metrics)
            new = (self.broken < 0) & ~torch.isfinite(loss.detach())
            self.broken = torch.where(new, index, self.broken)
        most = config.clip_norm or math.inf
        if self.sharding is None:
            norm = nn.utils.clip_grad_norm_(self.parameters, most)
        else:
            norm = self.sharding.clip_gradients(self.parameters, most)
        self._add(grad_norm=norm)
        if config.weights_dtype == "bfloat16":
            rounded_step(self.optimizer, derive_seed(config.seed, "rounding", self.step))
        else:
            self.optimizer.step()
        self.step += 1
        self.summed += 1
        self.task.end_step(self.processes.gather)
        self.ema.update(self.step)

    def _in_halves(self, dtype: str) -> torch.autocast:
        """Calculations in bfloat16, where that is the dtype."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices and filters decay; biases, gains and embedding tables do not."""
        tables = {id(m.weight) for t in self.task.modules.values() for m in t.modules() if isinstance(m, nn.Embedding)}
        decayed = [p for p in self.parameters if p.ndim >= 2 and id(p) not in tables]
        chosen = {id(p) for p in decayed}
        rest = [p for p in self.parameters if id(p) not in chosen]
        groups = [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        if self.sharding is not None:
            groups = [part for group in groups for part in self.sharding.separated(group)]
        return [group for group in groups if group["params"]]

    def _add(self, parts: int = 1, **values: Tensor) -> None:
        """Values of a step, or of one of its `parts`."""
        for name, value in values.items():
            value = value.detach().float() / parts
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _settle(self) -> None:
        """Let every process have the means of what all have summed, and end where a loss was not finite."""
        self.sums = dict(zip(self.sums, self.processes.mean(list(self.sums.values())), strict=True))
        broken = self.processes.largest(int(self.broken))
        if broken >= 0:
            step, place = broken // self.micro_batches + 1, self.task.describe(broken)
            raise CascadeError(
                f"{self.config.output}: the loss is not finite at step {step} ({place}). A lower learning_rate or "
                "float32 may help. The state saved last is untouched."
            )

    def _log(self) -> None:
        self._settle()
        means = {name: float(value) / self.summed for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        self.metrics = {
            **means,
            "learning_rate": learning_rate(self.config, self.step - 1, self.extension),
            "samples_per_second": self.step * self.config.batch_size * self.micro_batches / self.seconds,
        }
        if self.device.type == "cuda":
            self.metrics["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        if self.processes.first:
            self._append()

    def _append(self) -> None:
        with writing(self.config.output):
            append_metrics(self.config.output, {"step": self.step, **self.metrics, "seconds": round(self.seconds, 3)})
        for tracker in self.trackers:
            tracker.log(self.step, self.metrics)

    def sample(self) -> None:
        """Write samples/step.png with the averaged weights, and the plot of the loss."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        with torch.no_grad(), self.ema.applied() as modules, self._in_halves(self.config.weights_dtype):
            sheet = self.task.sample(modules, generator)
        if not self.processes.first:
            return
        if sheet is not None:
            for tracker in self.trackers:
                tracker.image(self.step, sheet)
        with writing(self.config.output):
            if sheet is not None:
                path = self.config.output / "samples" / f"step_{self.step:08d}.png"
                write_atomically(path, lambda p: sheet.save(p, "PNG"))
            if (plot := plot_loss(self.config.output)) is not None:
                write_atomically(self.config.output / "loss.png", lambda p: plot.save(p, "PNG"))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Log the loss on the held-out images, with the weights as they are."""
        config, modules = self.config, self.task.modules.values()
        for module in modules:
            module.eval()
        sums: dict[str, Tensor] = {}
        count = -(-config.held_out // config.batch_size)
        with self.task.validation() as further:
            for index in range(count):
                generator = torch.Generator(self.device).manual_seed(derive_seed(config.seed, "validation", index))
                with self._in_halves(config.precision):
                    loss, metrics = self.task.loss(self.task.batch(index), generator)
                for name, value in {"loss": loss, **metrics}.items():
                    sums[name] = sums.get(name, 0) + value.float() / count
            found = {f"validation_{name}": float(value) for name, value in (sums | further()).items()}
        for module in modules:
            module.train()
        if self.processes.first:
            with writing(config.output):
                append_metrics(config.output, {"step": self.step, **found})
            for tracker in self.trackers:
                tracker.log(self.step, found)
        return found

    def save(self) -> None:
        """The state, and the averaged weights as they are now, to try them."""
        output, first = self.config.output, self.processes.first
        state: dict[str, Any] = {
            "config": self.config.to_dict(),
            "step": self.step,
            "micro_batches": self.micro_batches,
            "seconds": self.seconds,
            "finished": self.finished,
            "extension": None if self.extension is None else tuple(self.extension),
            "task": self.task.state(),
            "sums": self.sums,
            "summed": self.summed,
        }
        with writing(output):
            self.saving.finish()
            with self.ema.applied() as modules:
                whole = modules if self.sharding is None else self.sharding.gathered(modules)
                if first:
                    # Before the state: where one is marked as finished, its files exist.
                    self.task.export(whole, output, getattr(torch, self.config.export_dtype))
            self._write(state)

    def end_save(self, *, wait: bool = True) -> None:
        """Do what is left of a save in the background; without `wait`, only if its work is done."""
        with writing(self.config.output):
            self.saving.finish(wait=wait)

    def _write(self, state: dict[str, Any]) -> None:
        """The state and what is learned, at once or in the background."""
        config, step = self.config, self.step

        def write() -> None:
            if self.processes.first:
                save_state(config.output, state)
                keep_states(config.output, step, config)
                log.info("%s: saved at step %d", config.output, step)

        place = place_of(config.output, step)
        if config.shard:
            state["parts"] = place.name
        else:
            state["modules"] = {name: m.state_dict() for name, m in self.task.modules.items()}
            state |= {"ema": self.ema.state(), "optimizer": self.optimizer.state_dict()}
        if config.async_save:
            state = copied(state)
        if not config.shard:
            self.saving.start(write) if config.async_save else write()
            return
        from .sharding import end_parts, save_parts, start_parts

        if config.async_save:
            future = start_parts(place, *self._whole(), saving_group())
            self.saving.start(future, lambda done: (end_parts(place, done), write()))
        else:
            save_parts(place, *self._whole())
            write()

    def _whole(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        return nn.ModuleDict(dict(self.task.modules)), nn.ModuleDict(self.ema.own), self.optimizer

    def resume(self) -> None:
        """Take up the state in the output folder; raises RunConflict when it is another run's."""
        output = self.config.output
        state = load_state(output, self.device)
        if state is not None:
            try:
                self._take_up(state)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise BrokenCheckpoint(
                    f"not the state of such a training ({error}); delete it to restart", output / STATE_FILE
                ) from error
            log.info("%s: going on from step %d", output, self.step)
        if self.processes.first:
            with writing(output):
                for folder in (output, output / "samples"):
                    remove_abandoned(folder)
                truncate_metrics(output, self.step)

    def _take_up(self, state: dict[str, Any]) -> None:
        reasons = incompatible_changes(state["config"], self.config.to_dict())
        before = operator.index(state.get("micro_batches", state["config"]["accumulation"]))
        if before != self.micro_batches:
            reasons.append(
                f"a step had {before} micro-batches (accumulation times processes) and would have {self.micro_batches}"
            )
        if reasons:
            raise RunConflict(
                f"{self.config.output}: holds a run with other settings: {'; '.join(reasons)}. "
                "Restore them, or choose another output folder."
            )
        if self.config.shard:
            from .sharding import load_parts

            load_parts(self.config.output / STATES / Path(state["parts"]).name, *self._whole())
        else:
            self._take_up_networks(state)
        if self.config.optimizer == "adamw":
            self._check_optimizer()
        self.task.load_state(state["task"])
        self.step, self.summed = operator.index(state["step"]), operator.index(state["summed"])
        self.seconds, self.finished = float(state["seconds"]), bool(state.get("finished", False))
        self.sums = {str(name): torch.tensor(float(value), device=self.device) for name, value in state["sums"].items()}
        if min(self.step, self.summed, self.seconds) < 0 or not math.isfinite(self.seconds):
            raise ValueError("its counters are out of range")
        self._take_up_rate(state)

    def _take_up_networks(self, state: dict[str, Any]) -> None:
        for name, module in self.task.modules.items():
            module.load_state_dict(state["modules"][name])
        self.ema.load_state(state["ema"])
        # AdamW's groups are those of the settings; others keep there what they have learned.
        groups = self.optimizer.state_dict()["param_groups"]
        if self.config.optimizer != "adamw":
            saved = state["optimizer"]["param_groups"]
            groups = [{**a, "params": b["params"]} for a, b in zip(saved, groups, strict=True)]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})

    def _check_optimizer(self) -> None:
        for parameter, own in self.optimizer.state.items():
            shapes = {own[name].shape for name in ("exp_avg", "exp_avg_sq")}
            if shapes != {parameter.shape} or own["step"].numel() != 1:
                raise ValueError("the optimizer's averages have other shapes than the parameters")

    def _take_up_rate(self, state: dict[str, Any]) -> None:
        found = state.get("extension")
        before = None if found is None else Extension(operator.index(found[0]), float(found[1]))
        if before is not None and not (0 <= before.step <= self.step and 0 <= before.share <= 1):
            raise ValueError("its learning rate is out of range")
        self.extension = extended(self.config, operator.index(state["config"]["steps"]), self.step, before)
