"""ComfyUI's TorchCompileModel on our MODEL: sizes change without end, and nothing of ours ends a graph."""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.attention
import pytest
import torch
from torch._dynamo.utils import counters

from tests.nodes.model_pairs import SHAPES, conditioning, ours, sample
from tests.nodes.test_models import prior
from tests.support import relative_error


@pytest.fixture(autouse=True)
def _fresh(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # What ComfyUI uses on a card. On a CPU its own looks up the free memory in a file, which ends a graph.
    attention = comfy.ldm.modules.attention.attention_pytorch
    monkeypatch.setattr(host.pack("nodes.host.networks"), "optimized_attention", attention)
    torch.compiler.reset()
    counters.clear()


@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_the_hosts_node_compiles_our_models(host: Any, kind: str) -> None:
    model = ours(host, kind)
    conds = conditioning(**prior(kind)), conditioning(seed=2)
    # Not one of the node's choices, but it takes the same way as they do and needs no C++ compiler.
    [compiled] = host.call("TorchCompileModel", model=model, backend="eager")
    channels = SHAPES[kind][1]
    for height, width in ((24, 20), (32, 24), (16, 28)):
        shape = (1, channels, height, width)
        expected = sample(model, kind, *conds, shape=shape, steps=2)
        assert relative_error(sample(compiled, kind, *conds, shape=shape, steps=2), expected) < 1e-4
    assert counters["graph_break"] == {}
    # One for the first size, one for all others.
    assert counters["stats"]["unique_graphs"] == 2


def test_a_compiled_model_with_a_cache(host: Any) -> None:
    """The cache ends a graph where it decides; what it decides about is compiled."""
    model, conds = ours(host, "stage_c"), (conditioning(), conditioning(seed=2))
    [cached] = host.call(
        "CascadeCache", model=model, inner_every=2, threshold=0.0, cfg_every=2, start_percent=0.0, end_percent=1.0
    )
    [compiled] = host.call("TorchCompileModel", model=cached, backend="eager")
    expected = sample(cached, "stage_c", *conds, steps=6)
    assert relative_error(sample(compiled, "stage_c", *conds, steps=6), expected) < 1e-4
    assert counters["stats"]["unique_graphs"] > 0
