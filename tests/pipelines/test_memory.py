"""One network in memory at a time: each is gone before the next is read, without waiting for the garbage collector."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cascade.diffusion import Cache
from cascade.pipelines import ImageToImage, Parts, Settings, generate
from tests import small


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("cache", [None, Cache(inner_every=2, cfg_every=2)])
def test_a_network_is_gone_before_the_next_is_read(cache: Cache | None) -> None:
    read: list[tuple[str, Any]] = []

    def source(kind: str) -> Callable[[], Any]:
        def load() -> Any:
            assert [name for name, net in read if net() is not None] == []
            net = copy.deepcopy(small.part(kind))
            read.append((kind, weakref.ref(net)))
            return net

        return load

    settings = Settings(width=64, height=64)
    stages = {name: replace(getattr(settings, name), steps=3, cache=cache) for name in ("stage_c", "stage_b")}
    kinds = [kind for kind in small.small_cascade() if kind != "image_encoder"]
    generate(
        Parts({kind: source(kind) for kind in kinds}),
        ["a cat"],
        seeds=[1],
        source=ImageToImage(images=torch.rand(1, 3, 64, 64), strength_b=0.5),
        settings=replace(settings, **stages),
    )
    assert [kind for kind, _ in read] == ["text_encoder", "effnet", "stage_a", "stage_c", "stage_b", "stage_a"]
    assert [name for name, net in read if net() is not None] == []
