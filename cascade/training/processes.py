"""Several processes, one training: `torchrun --nproc-per-node N -m cascade train FILE`.

Gradients are averaged by torch's DistributedDataParallel, or networks are split: see `sharding`. Every process reads
its own micro-batches; the first one alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_WAIT = timedelta(days=7)
"""How long a process waits for the first one, which may compute latents or save. One that died is noticed at once."""


class Processes:
    """All processes of a training. Where there is one, nothing here does anything.

    rank: the number of this one. size: how many there are.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def parallel(self, net: nn.Module) -> nn.Module:
        """The module that is called in the place of `net`, so that its gradients become the mean over all processes."""
        if self.size == 1:
            return net
        # Which parameters a batch needs is a matter of chance: an image encoder sees some of the images only.
        return DistributedDataParallel(net, find_unused_parameters=True, gradient_as_bucket_view=True)

    def alone(self, net: nn.Module) -> AbstractContextManager[Any]:
        """While gradients are summed that are not the last of their step: they stay in this process."""
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()

    def mean(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The mean of each scalar over all processes."""
        if self.size == 1 or not values:
            return list(values)
        together = torch.stack([value.detach().float() for value in values])
        dist.all_reduce(together)
        return list(together / self.size)

    def any(self, value: bool) -> bool:
        """Whether it is true in one of them."""
        return bool(self.largest(int(value)))

    def largest(self, value: int) -> int:
        """Of the values of all."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=_control())
        return int(found)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks, in each of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=_control())
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier(group=_control())


_groups: dict[str, Any] = {}


def saving_group() -> Any:
    """The group of a save in the background, which the training's own messages must not meet; None for one process."""
    return _groups.get("saving")


def _control() -> Any:
    """The group of messages on the CPU."""
    return _groups["control"]


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def joined() -> Iterator[Processes]:
    """Connect the processes that torchrun started; without it, one by itself."""
    if not launched() or dist.is_initialized():
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # `cuda` is now this process's card
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    for name in ("control", "saving"):
        _groups[name] = dist.new_group(backend="gloo", timeout=_WAIT)
    try:
        yield Processes()
    finally:
        _groups.clear()
        dist.destroy_process_group()
