"""The networks of a Stable Cascade, one in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..adapters import Applied, attach
from ..checkpoints import load_model
from ..conditioning import tokenizer
from ..errors import MissingPart

T = TypeVar("T")
NetworkSource = str | Path | nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True)
class Parts:
    """Where each network comes from: kind ("stage_c", "text_encoder", ...) -> file, loader or network.

    A file is loaded on `device` in `dtype` when it is used, and freed afterwards; so is what a loader returns. A
    network that is passed itself is not moved or changed. `loras` act on Stage C, Stage B and the text encoder while
    these are used.
    """

    sources: Mapping[str, NetworkSource]
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    loras: Sequence[Applied] = ()

    def use(self, kind: str, task: Callable[[Any], T]) -> T:
        """The result of `task(network)`; nothing of the network is kept unless `task` keeps it.

        Raises MissingPart, or what loading and attaching raise.
        """
        if kind not in self.sources:
            raise MissingPart(
                f"This needs the network {kind}; there are only {', '.join(sorted(self.sources)) or 'no parts'}."
            )
        source = self.sources[kind]
        if isinstance(source, nn.Module):
            return self._run(kind, source, task)
        try:
            return self._run(kind, source() if callable(source) else self._load(kind, source), task)
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _run(self, kind: str, net: nn.Module, task: Callable[[Any], T]) -> T:
        with self._with_loras(kind, net):
            return task(net)

    def _with_loras(self, kind: str, net: nn.Module) -> AbstractContextManager[Any]:
        if self.loras and kind in ("stage_c", "stage_b"):
            return attach(self.loras, **{kind: net})
        if self.loras and kind == "text_encoder":
            return attach(self.loras, text_encoder=net, tokenizer=tokenizer())
        return nullcontext()

    def _load(self, kind: str, path: str | Path) -> nn.Module:
        return load_model(path, part=kind, dtype=self.dtype, device=self.device)
