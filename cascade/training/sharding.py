"""Networks that are split over the processes of a training: torch's FSDP2, block by block.

Each process keeps its part of the weights, of their gradients, of the optimizer's state and of the average; a block's
weights are put together while it calculates. Over several machines every machine has all parts (HSDP).
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from ..errors import one_line
from ..models.blocks import AttnBlock, TimestepBlock
from ..models.stack import Stack
from .average import Average
from .config import TrainingConfig
from .task import Task

_NAMED = StateDictOptions(flatten_optimizer_state_dict=True)
"""Of parameters by their names, whatever groups they are in: groups differ between one process and several."""


class Sharding:
    """A task's large networks, and their average, split over all processes.

    templates: the trained ones without weights, as they were before.
    """

    def __init__(self, task: Task, average: Average, config: TrainingConfig) -> None:
        self.task = task
        self.templates: dict[str, nn.Module] = {}
        mesh = _mesh(next(iter(task.modules.values())))
        for name, net in task.modules.items():
            if any(net is each for each in task.large()):
                self.templates[name] = copy.deepcopy(net).to("meta")
                if name in average.own:  # of the network before it was split: a split one cannot be copied
                    _split(average.own[name], mesh, config)
        for net in task.large():
            _split(net, mesh, config)

    def synchronize(self, last: bool) -> None:
        """Whether gradients are averaged over the processes in the next backward pass: after the last of a step."""
        for net in self.task.large():
            net.set_requires_gradient_sync(last)  # type: ignore[operator]

    def clip_gradients(self, parameters: Sequence[Tensor], most: float) -> Tensor:
        """Average what is not split over the processes, and clip all as torch's clip_grad_norm_. The norm before."""
        average_gradients(parameters)
        return clip_gradients(parameters, most)

    def separated(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """A group of parameters as one of those that are split, and one of the others: they cannot be one call."""
        parts = ([p for p in group["params"] if is_split(p) == wanted] for wanted in (True, False))
        return [{**group, "params": part} for part in parts]

    def gathered(self, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The networks whole, on the CPU, in the first process; the others take part and get what has no meaning."""
        found = dict(modules)
        for name, template in self.templates.items():
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_model_state_dict(modules[name], options=options)
            if dist.get_rank() == 0:
                found[name] = copy.deepcopy(template)
                found[name].load_state_dict(state, assign=True)
        return found


def _mesh(like: nn.Module) -> DeviceMesh:
    kind = next(like.parameters()).device.type
    size, here = dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    if here == size:
        return init_device_mesh(kind, (size,))
    return init_device_mesh(kind, (size // here, here), mesh_dim_names=("replicate", "shard"))


def _split(net: Any, mesh: DeviceMesh, config: TrainingConfig) -> None:
    half = torch.bfloat16 if config.precision == "bfloat16" else None
    # Autocast casts what blocks get; noise levels stay in float32.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if config.offload else OffloadPolicy()
    for parameter in net.parameters():
        parameter.data = parameter.data.contiguous()
    for block in net.blocks(nn.Module):
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload)
    fully_shard(net, mesh=mesh, mp_policy=policy, offload_policy=offload)
    methods = {Stack: ("conditions", "denoise", "features"), AttnBlock: ("keys_values",), TimestepBlock: ("steady",)}
    for module in (net, *net.blocks(nn.Module)):
        for kind, names in methods.items():
            for name in names if isinstance(module, kind) else ():
                if hasattr(module, name):
                    register_fsdp_forward_method(module, name)


def is_split(parameter: Tensor) -> bool:
    """Whether a parameter's other parts are in other processes."""
    return isinstance(parameter, DTensor)


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace the gradients of parameters that are not split by their means over all processes."""
    plain = [parameter for parameter in parameters if not is_split(parameter)]
    if not plain:
        return
    # Which ones a batch needs is a matter of chance: an image encoder sees some of the images only.
    used = torch.tensor([float(parameter.grad is not None) for parameter in plain], device=plain[0].device)
    dist.all_reduce(used)
    seen = [parameter for parameter, count in zip(plain, used.tolist(), strict=True) if count]
    if not seen:
        return
    whole = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in seen])
    dist.all_reduce(whole)
    for parameter, part in zip(seen, whole.split([p.numel() for p in seen]), strict=True):
        mean = (part / dist.get_world_size()).view(parameter.shape)
        parameter.grad = torch.empty_like(parameter).copy_(
            mean
        )  # in the order of its weight: filters lie channels last


def clip_gradients(parameters: Sequence[Tensor], most: float) -> Tensor:
    """As torch's clip_grad_norm_, for parameters of which some are split. The norm before, in every process."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = []
    for part in ([g for g in gradients if is_split(g)], [g for g in gradients if not is_split(g)]):
        if part:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in part]))
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    device = norms[-1].device
    total = torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))
    factor = (most / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        local.mul_(factor.to(local.device))
    return total


def _tensors(modules: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "modules": get_model_state_dict(modules),
        "ema": get_model_state_dict(average) if list(average.parameters()) else {},
        "optimizer": get_optimizer_state_dict(modules, optimizer, options=_NAMED),
    }


def save_parts(folder: Path, modules: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write each process's part of networks, average and optimizer into a folder, which is there whole or not at all.

    All processes call this. Raises OSError.
    """
    new = _emptied(folder)
    try:
        dcp.save(_tensors(modules, average, optimizer), checkpoint_id=new, no_dist=not dist.is_initialized())
    except CheckpointException as error:  # which is no Exception
        raise OSError(errno.EIO, _reason(error), str(new)) from error
    _place(new, folder)
    if dist.is_initialized():
        dist.barrier()


def start_parts(
    folder: Path, modules: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, group: Any
) -> Future[Any]:
    """As `save_parts`, from a copy, while the training goes on; `end_parts` is for when the future is done.

    group: of processes (gloo) that nothing else uses; None where there is one process.
    """
    options = {"checkpoint_id": _emptied(folder), "process_group": group, "no_dist": group is None}
    return cast("Future[Any]", dcp.async_save(_tensors(modules, average, optimizer), **options))


def end_parts(folder: Path, future: Future[Any]) -> None:
    """Wait until all is written, and put it in its place. Raises OSError."""
    new = _new(folder)
    try:
        future.result()
    except CheckpointException as error:
        raise OSError(errno.EIO, _reason(error), str(new)) from error
    _place(new, folder)


def _new(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _emptied(folder: Path) -> Path:
    """Where the parts of a folder are written before they are whole."""
    new = _new(folder)
    if _is_first():
        for left in folder.parent.glob(_new(Path("*")).name):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    if dist.is_initialized():
        dist.barrier()
    return new


def _place(new: Path, folder: Path) -> None:
    if _is_first():
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def load_parts(folder: Path, modules: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read what `save_parts` has written, in any number of processes, into networks, average and optimizer.

    Raises ValueError where something is missing or damaged.
    """
    state = _tensors(modules, average, optimizer)
    try:
        dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise ValueError(f"{folder}: {_reason(error)}") from error
    set_model_state_dict(modules, state["modules"])
    if state["ema"]:
        set_model_state_dict(average, state["ema"])
    set_optimizer_state_dict(modules, optimizer, state["optimizer"], options=_NAMED)


def _reason(error: CheckpointException) -> str:
    """Of the first process that failed, without torch's traces of all."""
    first = next(iter(error.failures.values()))[0]
    return f"{type(first).__name__}: {one_line(str(first))}"
