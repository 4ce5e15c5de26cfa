"""Layers whose constructors do not initialize their weights."""

from __future__ import annotations

from typing import Any

from torch import nn


class _Untouched:
    """torch's constructors initialize weights: seconds for a network whose tensors are then loaded from a file."""

    def reset_parameters(self) -> None:
        pass


class Linear(_Untouched, nn.Linear):
    pass


class Conv2d(_Untouched, nn.Conv2d):
    pass


class ConvTranspose2d(_Untouched, nn.ConvTranspose2d):
    pass


class LayerNorm(_Untouched, nn.LayerNorm):
    pass


class _Layers:
    """The factory that replaces `torch.nn`."""

    Linear, Conv2d, ConvTranspose2d, LayerNorm = Linear, Conv2d, ConvTranspose2d, LayerNorm


def layer_factory(ops: Any) -> Any:
    """`ops`, or for `torch.nn` its layers with constructors that touch no weights."""
    return _Layers if ops is nn else ops
