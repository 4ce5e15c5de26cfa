"""What the loop asks of a training."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import InvalidConfig, RunConflict
from ..models.stack import Stack
from .config import TrainingConfig
from .stream import StreamOrder

Modules = Mapping[str, nn.Module]


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

    def large(self) -> Sequence[Stack]:
        """The networks that are split over the processes where the settings say `shard`, trained or not."""
        ...

    def describe(self, index: int) -> str:
        """What micro-batch number `index` holds, for messages."""
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

    def large(self) -> Sequence[Stack]:
        """Every one that the task has, and a LoRA's or a ControlNet's base is an attribute of it."""
        held = [each for each in (*self.modules.values(), *vars(self).values()) if isinstance(each, Stack)]
        return list(dict.fromkeys(held))

    def describe(self, index: int) -> str:
        order = getattr(self, "order", None)
        if order is None:
            return f"micro-batch {index}"
        count = getattr(self, "count", self.config.batch_size)
        if isinstance(order, StreamOrder):
            return f"micro-batch {index}, with the images {', '.join(order.names(index, count))}"
        rows = order.rows(index, count)
        return f"micro-batch {index}, with the images number {', '.join(str(int(row)) for row in rows)}"

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
