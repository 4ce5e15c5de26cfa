"""The average of the weights over the steps, which is what a training exports."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .config import TrainingConfig


class Average:
    """An average of `modules`, with their structure, in eval mode.

    With `ema` 0 it is the weights themselves: it takes no memory. `ema_device` cpu keeps it off the device.
    """

    def __init__(self, modules: Mapping[str, nn.Module], config: TrainingConfig) -> None:
        self.current, self.config = modules, config
        self.own: dict[str, nn.Module] = {}
        for name, module in modules.items() if config.ema > 0 else ():
            average = copy.deepcopy(module).eval().requires_grad_(False)
            self.own[name] = average.cpu() if config.ema_device == "cpu" else average

    @contextmanager
    def applied(self) -> Iterator[Mapping[str, nn.Module]]:
        """The averaged networks, in eval mode and on the device."""
        if not self.own:
            for module in self.current.values():
                module.eval()
            yield self.current
            for module in self.current.values():
                module.train()
            return
        for name, module in self.own.items():
            module.to(_first(self.current[name]).device)
        yield self.own
        if self.config.ema_device == "cpu":
            for module in self.own.values():
                module.cpu()

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {name: module.state_dict() for name, module in self.own.items()}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        for name, module in self.own.items():
            module.load_state_dict(state[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after step number `step`, counted from 1.

        Early on faster, so that the first random weights are not remembered; up to `ema_start` it is the weights.
        """
        config = self.config
        if not self.own or (step % config.ema_every and step != config.steps):
            return
        count = max(0, step - config.ema_start) // config.ema_every
        decay = min(config.ema, (1 + count) / (10 + count)) if count else 0.0
        average, current = _tensors(self.own), _tensors(self.current)
        pairs = [(a, c) for a, c in zip(average, current, strict=True) if a.is_floating_point()]
        alike = [(a, c) for a, c in pairs if (a.dtype, a.device) == (c.dtype, c.device)]
        for split in (True, False):  # those whose parts are in several processes by themselves
            part = [(a, c) for a, c in alike if hasattr(a, "to_local") == split]
            if part:
                torch._foreach_lerp_([a for a, _ in part], [c for _, c in part], 1 - decay)
        for a, c in pairs:  # one after the other: a copy of all at once would be as large as the network
            if (a.dtype, a.device) != (c.dtype, c.device):
                a.lerp_(c.to(a.device, a.dtype), 1 - decay)
        for a, c in zip(average, current, strict=True):
            if not a.is_floating_point():
                a.copy_(c)


def _first(module: nn.Module) -> Tensor:
    return next(itertools.chain(module.parameters(), module.buffers()))


def _tensors(modules: Mapping[str, nn.Module]) -> list[Tensor]:
    return [t for m in modules.values() for t in itertools.chain(m.parameters(), m.buffers())]
