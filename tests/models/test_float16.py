"""Stage C in float16 where its activations leave float16's range, as in the released weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cascade.models import blocks, stack
from cascade.models.blocks import ResBlock, TimestepBlock
from tests.support import golden, golden_network, relative_error

pytestmark = pytest.mark.numeric

HALF_MAX = 65504


def overflowing() -> tuple[nn.Module, list[Tensor], Tensor]:
    """A Stage C whose last group multiplies its stream up at every timestep block; inputs; the float32 output."""
    net, data = golden_network("stage_c_small"), golden("stage_c_small")
    for block in net.up_blocks[-1]:
        if isinstance(block, TimestepBlock):
            block.mapper.bias.add_(60.0)
    inputs = [data[name] for name in ("x", "r", "clip_text", "clip_text_pooled", "clip_img")]
    return net, inputs, net(*inputs)


def peaks(net: nn.Module, inputs: list[Tensor]) -> float:
    """The largest activation between the blocks of the last group."""
    seen: list[float] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(float(out.abs().max())))
        for block in net.up_blocks[-1]
    ]
    net(*inputs)
    for hook in hooks:
        hook.remove()
    return max(seen)


def half(inputs: list[Tensor]) -> list[Tensor]:
    x, r, *rest = inputs
    return [x.half(), r, *(value.half() for value in rest)]


def test_the_case_really_leaves_the_range() -> None:
    net, inputs, _ = overflowing()
    assert peaks(net, inputs) > 2 * HALF_MAX


def test_output_is_finite_and_close_to_float32() -> None:
    net, inputs, expected = overflowing()
    out = net.half()(*half(inputs))
    assert out.dtype == torch.float16
    assert out.isfinite().all()
    assert relative_error(out, expected) < 0.01


def test_control_past_the_range_is_survived_too() -> None:
    net, inputs, _ = overflowing()
    count = len(net.blocks(ResBlock))
    control = [None] * (count - 1) + [torch.full((2, 32, 6, 6), 60000.0)]
    expected = net(*inputs, control=control)
    out = net.half()(*half(inputs), control=[c if c is None else c.half() for c in control])
    assert out.isfinite().all()
    assert relative_error(out, expected) < 0.01


def test_without_the_float32_stream_it_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cure is what makes the difference: the plain float16 stream gives no finite image."""
    net, inputs, _ = overflowing()
    monkeypatch.setattr(stack, "stream", lambda x: x)
    for module in (blocks, stack):
        monkeypatch.setattr(module, "on_stream", lambda layer, x: layer(x.half()))
    out = net.half()(*half(inputs))
    assert not out.isfinite().all()
