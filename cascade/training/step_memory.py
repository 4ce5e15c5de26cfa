"""The memory that a training step takes, found by taking one without numbers.

The networks and a step are made of torch's fake tensors, which have shapes and no content: seconds and no memory,
whatever the size. What is alive at each moment is counted, as autograd, autocast and checkpointing really keep it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..models import Conditions, StageB, StageBConfig, StageC, StageCConfig
from .config import TrainingConfig
from .networks import for_training
from .rounding import to_bfloat16
from .task import pick_device

Wire = Callable[[nn.Module], nn.Module]


class Step(NamedTuple):
    """The modules that are trained, all that lie beside each other in memory, and the loss of a batch."""

    trained: Sequence[nn.Module]
    held: Sequence[nn.Module]
    loss: Callable[[], Tensor]


def stage_c_step(
    config: TrainingConfig, size: StageCConfig, *, side: int, tokens: int = 77, wire: Wire | None = None, each: int = 1
) -> Step:
    """Of a Stage C on latents [B, 16, side, side], `each` of the batch's images at that many noise levels.

    wire: adds an adapter to the network, which then stays as it is.
    """
    net = _network(config, StageC(size), wire is not None)
    trained = net if wire is None else wire(net)
    images, dtype = config.batch_size // each, next(net.parameters()).dtype if wire is not None else torch.float32

    def loss() -> Tensor:
        widths = {"clip_text": (tokens, size.clip_text), "clip_text_pooled": (1, size.clip_text_pooled)}
        inputs = {name: torch.empty(images, *shape, dtype=dtype) for name, shape in widths.items()}
        conditions = net.conditions(**inputs, clip_img=torch.empty(images, 1, size.clip_img, dtype=dtype))
        return _error(net, torch.empty(config.batch_size, size.latent_channels, side, side), conditions, each)

    return Step([trained], [net], loss)


def stage_b_step(config: TrainingConfig, size: StageBConfig, *, side: int, effnet: int) -> Step:
    """Of a Stage B on latents [B, 4, side, side], and the encoder's [B, 16, effnet, effnet]."""
    net, count = _network(config, StageB(size), False), config.batch_size

    def loss() -> Tensor:
        read, clip = torch.empty(count, size.effnet, effnet, effnet), torch.empty(count, 1, size.clip)
        conditions = net.conditions(read, clip, size=(side, side))
        return _error(net, torch.empty(count, size.latent_channels, side, side), conditions, 1)

    return Step([net], [net], loss)


def _network(config: TrainingConfig, net: Any, stays: bool) -> Any:
    if stays:
        net.requires_grad_(False)
        if config.precision == "bfloat16":
            to_bfloat16([net])
    plain = config.model_copy(update={"torch_compile_backend": None})  # compiling keeps about as much
    return for_training(net, pick_device(config.device), plain)


def _error(net: Any, x: Tensor, conditions: Conditions, each: int) -> Tensor:
    from .stage_c import repeat_conditions

    found = net.denoise(x, torch.empty(len(x)), repeat_conditions(conditions, each))
    return (found.float() - x).square().mean()


class StepMemory(NamedTuple):
    """In bytes.

    trained, frozen: weights that are trained, and that are not. gradients: of all. activations: the most that lies in
    memory in addition, gradients aside. peak: the most with them, as not all are there at once.
    numbers: how many are trained.
    """

    numbers: int
    trained: int
    frozen: int
    gradients: int
    activations: int
    peak: int


def step_memory(build: Callable[[], Step], config: TrainingConfig) -> StepMemory:
    """What a step of `build()` takes with `config`, without what the optimizer and the average keep.

    `build` makes networks and loss anew: nothing in it may read numbers.
    """
    with FakeTensorMode():
        step = build()
        if config.weights_dtype == "bfloat16":
            to_bfloat16(step.trained)
        parameters = [p for module in step.trained for p in module.parameters() if p.requires_grad]
        held = {
            id(t.untyped_storage()): t for m in (*step.held, *step.trained) for t in (*m.parameters(), *m.buffers())
        }
        count = _Count(held.values())
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(count.add_gradient)
        with count:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss = step.loss()
            loss.backward()
        trained = sum(_bytes(p) for p in parameters)
        return StepMemory(
            sum(p.numel() for p in parameters),
            trained,
            sum(t.untyped_storage().nbytes() for t in held.values()) - trained,
            count.gradients,
            count.most_beside_gradients,
            count.most,
        )


class _Count(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, for as long as they are alive."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.alive = self.most = self.gradients = self.most_beside_gradients = 0
        self._seen: dict[int, Any] = {id(t.untyped_storage()): t for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else (result,):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = id(storage)
        if key in self._seen:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.alive -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.alive += size
        self.most = max(self.most, self.alive)
        self.most_beside_gradients = max(self.most_beside_gradients, self.alive - self.gradients)

    def add_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.gradients += _bytes(parameter.grad)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
