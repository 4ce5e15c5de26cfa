"""The loop that every training shares: AdamW, accumulation, clipping, an average of the weights, exact continuation."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import BrokenCheckpoint, CascadeError, InvalidConfig, RunConflict
from ..files import remove_abandoned, write_atomically
from .average import Average
from .config import TrainingConfig, incompatible_changes
from .lock import exclusive, writing
from .metrics import append_metrics, plot_loss, truncate_metrics
from .optimizers import build_optimizer
from .processes import Processes
from .schedule import Extension, extended, learning_rate
from .signals import stop_signals
from .state import STATE_FILE, load_state, save_state

log = logging.getLogger("cascade")

Modules = Mapping[str, nn.Module]
OnTrainingStep = Callable[[int, int, dict[str, float]], None]


class Task(Protocol):
    """What is trained, on what, and towards what. Everything else is the loop's.

    Data and noise must follow from the arguments alone, so that a run that was stopped goes on exactly.
    """

    modules: dict[str, nn.Module]
    """The trained networks by name, already on the device. Parameters that need no gradient stay as they are."""

    def batch(self, index: int) -> Any:
        """Micro-batch number `index` since the start of the run."""
        ...

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of a batch, and further scalars to log. All randomness comes from `generator`."""
        ...

    def state(self) -> dict[str, Any]:
        """What the task itself must remember between steps (tensors and plain values)."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def validation(self) -> AbstractContextManager[Callable[[], dict[str, Tensor]]]:
        """While it is open, batches are of the held-out images. It gives a function for further metrics of the losses
        since."""
        ...

    def end_step(self, gather: Callable[[Any], list[Any]]) -> None:
        """Called after each optimizer step. `gather` gives the value of every process, in the order of their ranks."""
        ...

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """A sheet of samples made with the averaged weights."""
        ...

    def finish(self, modules: Modules) -> None:
        """Last touches on the averaged weights before they are exported (batch norm statistics, for instance)."""
        ...

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        """Write the averaged weights as files that load_model reads."""
        ...


class BaseTask:
    """The optional parts of a task, empty, and the export of every module under its own name.

    seen: names of the contents of the sources of images; a run goes on with the same images only.
    """

    config: TrainingConfig
    modules: dict[str, nn.Module]
    order: Any
    seen: Sequence[str] = ()

    def state(self) -> dict[str, Any]:
        return {"images": list(self.seen)} if self.seen else {}

    def load_state(self, state: dict[str, Any]) -> None:
        if state.get("images", self.seen) != self.seen:
            raise RunConflict(
                f"{self.config.output}: the images or their captions are not those of the run there. "
                "Restore them, or choose another output folder."
            )

    def end_step(self, gather: Callable[[Any], list[Any]]) -> None:
        pass

    @contextmanager
    def validation(self) -> Iterator[Callable[[], dict[str, Tensor]]]:
        order = self.order
        self.order = order.held_out()
        try:
            yield dict
        finally:
            self.order = order

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        return None

    def finish(self, modules: Modules) -> None:
        pass

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        from ..checkpoints import save_model

        for name, module in modules.items():
            plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            save_model(plain, folder / f"{name}.safetensors", dtype=dtype)


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
        with stop_signals(launched=processes.size > 1) as stopped:
            return trainer.run(on_step, lambda: stopped() or (should_stop is not None and should_stop()))


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one. Raises InvalidConfig for what is no device."""
    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise InvalidConfig(f"device: {str(error).splitlines()[0]}") from error


def derive_seed(*parts: int | str) -> int:
    """One seed from several numbers and names; nearby parts give unrelated seeds."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


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
        self.ema = Average(task.modules if processes.first else {}, config)
        self.parameters = [p for m in task.modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self._groups(), config)
        self.loss = processes.parallel(_Loss(task))
        self.step, self.seconds, self.finished = 0, 0.0, False
        self.extension: Extension | None = None
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.metrics: dict[str, float] = {}

    def run(self, on_step: OnTrainingStep | None, should_stop: Callable[[], bool]) -> Outcome:
        config, saved, first = self.config, self.step, self.processes.first
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
            if first and config.sample_every and self.step % config.sample_every == 0:
                self.sample()
            if first and config.validate_every and self.step % config.validate_every == 0:
                self.validate()
            if self.step % config.checkpoint_every == 0 and self.step < config.steps:
                if first:
                    self.save()
                saved = self.step
        complete = self.finished = self.step >= config.steps
        if first and complete:
            with self.ema.applied() as modules:
                self.task.finish(modules)
        if first and (saved != self.step or complete):
            self.save()
        self.processes.wait()
        return Outcome(self.step, complete, self.metrics)

    def _train_step(self) -> None:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, self.extension)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for micro in range(config.accumulation):
            index = self.step * self.micro_batches + micro * self.processes.size + self.processes.rank
            # Layers with noise of their own (dropout) use the global generator: its seed too follows from the step.
            torch.manual_seed(derive_seed(config.seed, "layers", index))
            generator = torch.Generator(self.device).manual_seed(derive_seed(config.seed, "loss", index))
            batch = self.task.batch(index)
            last = micro == config.accumulation - 1
            with nullcontext() if last else self.processes.alone(self.loss):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    loss, metrics = self.loss(batch, generator)
                (loss / config.accumulation).backward()
            for name, value in {"loss": loss, **metrics}.items():
                value = value.detach().float() / config.accumulation
                sums[name] = sums[name] + value if name in sums else value
        self._add(**dict(zip(sums, self.processes.mean(list(sums.values())), strict=True)))
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm or math.inf)
        self._add(grad_norm=norm)
        self.optimizer.step()
        self.step += 1
        self.summed += 1
        self.task.end_step(self.processes.gather)
        self.ema.update(self.step)

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices and filters decay; biases, gains and embedding tables do not."""
        tables = {id(m.weight) for t in self.task.modules.values() for m in t.modules() if isinstance(m, nn.Embedding)}
        decayed = [p for p in self.parameters if p.ndim >= 2 and id(p) not in tables]
        chosen = {id(p) for p in decayed}
        rest = [p for p in self.parameters if id(p) not in chosen]
        groups = [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def _add(self, **values: Tensor) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _log(self) -> None:
        means = {name: float(value) / self.summed for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        self.metrics = {
            **means,
            "learning_rate": learning_rate(self.config, self.step - 1, self.extension),
            "samples_per_second": self.step * self.config.batch_size * self.micro_batches / self.seconds,
        }
        if self.processes.first:
            self._append()
        self._check(means["loss"])

    def _append(self) -> None:
        with writing(self.config.output):
            append_metrics(self.config.output, {"step": self.step, **self.metrics, "seconds": round(self.seconds, 3)})

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise CascadeError(
                f"{self.config.output}: the loss is not finite at step {self.step}; a lower learning_rate or float32 "
                "may help. The state saved last is untouched."
            )

    def sample(self) -> None:
        """Write samples/step.png with the averaged weights, and the plot of the loss."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        with torch.no_grad(), self.ema.applied() as modules:
            sheet = self.task.sample(modules, generator)
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
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    loss, metrics = self.task.loss(self.task.batch(index), generator)
                for name, value in {"loss": loss, **metrics}.items():
                    sums[name] = sums.get(name, 0) + value.float() / count
            found = {f"validation_{name}": float(value) for name, value in (sums | further()).items()}
        for module in modules:
            module.train()
        with writing(config.output):
            append_metrics(config.output, {"step": self.step, **found})
        return found

    def save(self) -> None:
        """The state, and the averaged weights as they are now, to try them."""
        self._check(float(self.sums.get("loss", 0.0)))
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "micro_batches": self.micro_batches,
            "seconds": self.seconds,
            "finished": self.finished,
            "extension": None if self.extension is None else tuple(self.extension),
            "modules": {name: m.state_dict() for name, m in self.task.modules.items()},
            "ema": self.ema.state(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state(),
            "sums": self.sums,
            "summed": self.summed,
        }
        # In this order: where a state is marked as finished, its files exist.
        with writing(self.config.output), self.ema.applied() as modules:
            self.task.export(modules, self.config.output, getattr(torch, self.config.export_dtype))
            save_state(self.config.output, state)
        log.info("%s: saved at step %d", self.config.output, self.step)

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
        for name, module in self.task.modules.items():
            module.load_state_dict(state["modules"][name])
        self.ema.load_state(state["ema"])
        # AdamW's groups are those of the settings; others keep there what they have learned.
        groups = self.optimizer.state_dict()["param_groups"]
        if self.config.optimizer != "adamw":
            saved = state["optimizer"]["param_groups"]
            groups = [{**a, "params": b["params"]} for a, b in zip(saved, groups, strict=True)]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        if self.config.optimizer == "adamw":
            self._check_optimizer()
        self.task.load_state(state["task"])
        self.step, self.summed = operator.index(state["step"]), operator.index(state["summed"])
        self.seconds, self.finished = float(state["seconds"]), bool(state.get("finished", False))
        self.sums = {str(name): torch.tensor(float(value), device=self.device) for name, value in state["sums"].items()}
        if min(self.step, self.summed, self.seconds) < 0 or not math.isfinite(self.seconds):
            raise ValueError("its counters are out of range")
        self._take_up_rate(state)

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
