"""The networks under torch.compile: one graph, whatever the size of the latents and the length of the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import small


def inputs(kind: str, side: int, tokens: int) -> tuple[Tensor, ...]:
    pooled = torch.randn(2, 1, small.POOLED)
    if kind == "stage_b":
        return torch.randn(2, 4, 4 * side, 4 * side + 4), torch.rand(2), torch.randn(2, 16, side, side), pooled
    text = torch.randn(2, tokens, small.TEXT)
    return torch.randn(2, 16, side, side + 1), torch.rand(2), text, pooled, torch.randn(2, 1, small.IMAGE)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
@torch.no_grad()
def test_the_forward_compiles_as_one_graph(kind: str) -> None:
    """`fullgraph` makes a graph break an error."""
    net: Any = small.part(kind)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for side, tokens in ((6, 7), (8, 9), (5, 11)):
        given = inputs(kind, side, tokens)
        assert torch.equal(compiled(*given), net(*given))
    # One for the first size, one for all others.
    assert len(graphs) == 2


@torch.no_grad()
def test_a_step_compiles_as_one_graph() -> None:
    """With conditions that were computed before, and with residuals of a ControlNet."""
    net: Any = small.part("stage_c")
    x, r, *embeddings = inputs("stage_c", 6, 7)
    conditions = net.conditions(*embeddings)
    control = [torch.randn(2, 16, 3, 3), None]
    compiled = torch.compile(net.denoise, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, r, conditions, control=control), net.denoise(x, r, conditions, control=control))
