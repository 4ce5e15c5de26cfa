"""What acts around attention blocks: where it is called, and that it changes nothing where nothing acts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cascade.models import AttentionCall, StageC, scaled_dot_product_attention
from tests import small
from tests.support import randomised

pytestmark = pytest.mark.numeric

TEXT = 5


@pytest.fixture(scope="module")
def net() -> StageC:
    return randomised(StageC(small.CONFIGS["stage_c"]))  # type: ignore[return-value]


def run(net: StageC, around: object = None) -> Tensor:
    torch.manual_seed(1)
    x, r = torch.randn(2, 16, 4, 3), torch.rand(2)
    given = torch.randn(2, TEXT, small.TEXT), torch.randn(2, 1, small.POOLED), torch.randn(2, 1, small.IMAGE)
    return net.denoise(x, r, net.conditions(*given), around_attention=around)  # type: ignore[arg-type]


def test_each_block_says_what_it_computes_and_where_it_is(net: StageC) -> None:
    calls: list[AttentionCall] = []

    def around(call: AttentionCall) -> Tensor:
        calls.append(call)
        return call.plain()

    assert torch.equal(run(net, around), run(net))
    assert [call.block for call in calls] == list(range(len(calls)))
    blocks = sum(level.depth for level in (*net.config.levels, *net.config.levels))
    assert len(calls) == blocks
    for call in calls:
        assert call.size == (4, 3)
        assert call.attend is scaled_dot_product_attention
        # The image's own tokens, then those of text, pooled text and image.
        assert (call.q.shape[1], call.k.shape[1], call.v.shape[1]) == (12, 12 + TEXT + 8, 12 + TEXT + 8)


def test_what_is_returned_takes_the_place_of_attention(net: StageC) -> None:
    def without_text(call: AttentionCall) -> Tensor:
        kept = [*range(12), *range(12 + TEXT, call.k.shape[1])]
        return call.attend(call.q, call.k[:, kept], call.v[:, kept], call.heads)

    torch.manual_seed(1)
    x, r = torch.randn(2, 16, 4, 3), torch.rand(2)
    text, *rest = torch.randn(2, TEXT, small.TEXT), torch.randn(2, 1, small.POOLED), torch.randn(2, 1, small.IMAGE)
    expected = net.denoise(x, r, net.conditions(text[:, :0], *rest))
    assert torch.allclose(run(net, without_text), expected, atol=1e-5)
