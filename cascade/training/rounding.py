"""Weights that are trained in bfloat16: rounded by chance, so that a small update counts in the mean.

bfloat16 has 8 bits: to the nearest, an update below 1/512 of its weight is lost, whatever the number of steps. Rounding
up with the probability of what is left over keeps the mean (Gupta et al. 2015, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .task import derive_seed

_LOW = 16
"""Bits of a float32 that bfloat16 does not have."""


def to_bfloat16(modules: Iterable[nn.Module]) -> None:
    """Turn parameters into bfloat16, in place; those of batch norms stay, as their statistics do."""
    for module in modules:
        for layer in module.modules():
            if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for parameter in layer.parameters(recurse=False):
                    parameter.data = parameter.data.bfloat16()


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 values [...] in bfloat16: one of the two next to each, so that the mean over draws is the value."""
    words = -(-values.numel() // 4)
    noise = torch.empty(words, dtype=torch.int64, device=values.device)
    # Four numbers of 16 bits from each of 64: drawing them is most of the time.
    noise.random_(-(2**63), None, generator=generator)
    low = noise.view(torch.int16)[: values.numel()].view(values.shape).to(torch.int32) & (2**_LOW - 1)
    # Upwards in size by chance, then what is too much for bfloat16 is cut off. An infinity stays one.
    bits = low.add_(values.contiguous().view(torch.int32)).bitwise_and_(-(2**_LOW))
    return bits.view(torch.float32).bfloat16()


def rounded_step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    """`optimizer.step()`, in float32, for weights in bfloat16: one weight after the other, to hold little more.

    What the optimizer keeps of such a weight becomes bfloat16 too, by the same rounding. `seed` is of the step: all
    randomness follows from it and from the place of the weight.
    """
    groups = [(group, group["params"]) for group in optimizer.param_groups]
    try:
        for group, _ in groups:
            group["params"] = []
        for number, (group, parameters) in enumerate(groups):
            for place, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    generator = torch.Generator(parameter.device).manual_seed(derive_seed(seed, number, place))
                    _step_of_one(optimizer, group, parameter, generator)
            group["params"] = []
    finally:
        for group, parameters in groups:
            group["params"] = parameters


def _step_of_one(optimizer: Any, group: dict[str, Any], parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.dtype != torch.bfloat16:
        group["params"] = [parameter]
        optimizer.step()
        return
    exact = parameter.detach().float().requires_grad_()
    assert parameter.grad is not None
    exact.grad = parameter.grad.float()
    state = optimizer.state.pop(parameter, {})
    optimizer.state[exact] = {name: value.float() if _is_large(value) else value for name, value in state.items()}
    group["params"] = [exact]
    optimizer.step()
    found = optimizer.state.pop(exact)
    optimizer.state[parameter] = {
        name: _copied(torch.empty_like(value, dtype=torch.bfloat16), value, generator) if _is_large(value) else value
        for name, value in found.items()
    }
    _copied(parameter, exact, generator)


def _is_large(value: Any) -> bool:
    """Whether it is more than a counter."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


@torch.no_grad()
def _copied(to: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    """`to` [...] in bfloat16 with rounded values; of a tensor that is split, this process's part."""
    here, there = (getattr(each.detach(), "to_local", each.detach)() for each in (to, values))
    here.copy_(rounded(there, generator))
    return to
