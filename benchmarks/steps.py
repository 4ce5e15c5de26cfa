"""Both stages with random weights on any device: their networks, inputs, steps, and the work of a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cascade.models import StageA, StageB, StageC


def network(cls: Any, config: Any, device: Any, dtype: torch.dtype) -> Any:
    """A network with random weights that keep a signal's size, made on the device."""
    with torch.device("meta"):
        net: nn.Module = cls(config).to(dtype)
    net.to_empty(device=device)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.dim() > 1 and tensor[..., 0].numel() > 1 else 100
            tensor.normal_(std=fan_in**-0.5)
    return net.eval().requires_grad_(False)


def arguments_c(config: Any, batch: int, side: int, device: Any, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Latents and embeddings of Stage C."""
    shapes = [(77, config.clip_text), (1, config.clip_text_pooled), (1, config.clip_img)]
    embeddings = [torch.randn(batch, *shape, device=device, dtype=dtype) for shape in shapes]
    return torch.randn(batch, 16, side, side, device=device, dtype=dtype), embeddings


def arguments_b(config: Any, batch: int, side: int, device: Any, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Latents, and the conditions of Stage B."""
    small = -(-side * 3 // 32)
    effnet = torch.randn(batch, config.effnet, small, small, device=device, dtype=dtype)
    clip = torch.randn(batch, 1, config.clip, device=device, dtype=dtype)
    return torch.randn(batch, 4, side, side, device=device, dtype=dtype), [effnet, clip]


KINDS = {"stage_c": (StageC, arguments_c), "stage_b": (StageB, arguments_b)}


def step_of(net: Any, kind: str, side: int, device: Any, dtype: torch.dtype, **control: Any) -> Callable[..., Tensor]:
    """A guided step; a function to use instead of `denoise` may be given."""
    x, given = KINDS[kind][1](net.config, 2, side, device, dtype)
    size = {"size": x.shape[-2:]} if kind == "stage_b" else {}
    conditions = net.conditions(*given, **size)
    r = torch.full((2,), 0.5, device=device)

    def step(denoise: Callable[..., Tensor] | None = None) -> Tensor:
        return (denoise or net.denoise)(x, r, conditions, **control)

    return step


@cache
def step_flop(kind: str, config: Any, side: int) -> float:
    """The work of a guided step, counted without computing it."""
    with torch.device("meta"):
        net = KINDS[kind][0](config)
        step = step_of(net, kind, side, "meta", torch.float32)
        with FlopCounterMode(display=False) as counter:
            step()
    return float(counter.get_total_flops())


def decode_flop(config: Any, side: int) -> float:
    with torch.device("meta"):
        net, latents = StageA(config), torch.randn(1, 4, side // 4, side // 4)
        with FlopCounterMode(display=False) as counter:
            net.decode(latents)
    return float(counter.get_total_flops())


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
