"""Work of earlier steps that is used again: what is skipped, what is kept apart, and that off is the plain run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.diffusion import Cache, CacheRun, Guidance, SamplingSettings, SeededNoise, sample
from cascade.errors import InvalidSettings
from cascade.models.blocks import ResBlock
from tests import small
from tests.support import relative_error


class Network:
    """Stage C, or a part of it: counts the rows whose inner levels ran."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.inner: list[int] = []

    def __call__(self, x: Tensor, r: Tensor, shift: Tensor, around_inner: Any = None) -> Tensor:
        self.rows.append(len(x))

        def inner(x: Tensor) -> Tensor:
            self.inner.append(len(x))
            return x + shift.reshape(-1, 1, 1, 1)

        return torch.tanh(inner(x) if around_inner is None else around_inner(inner, x))


def run(cache: Cache | None, steps: int = 8, cfg: float = 4.0, **guidance: Any) -> tuple[Tensor, Network, str]:
    network, x = Network(), SeededNoise([1, 2]).start(4, 3, 3)
    settings = SamplingSettings(steps=steps, guidance=Guidance(cfg=cfg, **guidance), cache=cache)
    caching = None if cache is None else CacheRun(cache)
    cond, uncond = ({"shift": torch.full((2,), value)} for value in (0.5, -0.5))
    result = sample(network, x, settings, cond=cond, uncond=uncond, caching=caching)
    return result, network, "" if caching is None else caching.report()


def test_off_is_the_plain_run() -> None:
    plain, network, _ = run(None)
    result, other, report = run(Cache())
    assert torch.equal(result, plain)
    assert (network.rows, network.inner) == (other.rows, other.inner)
    assert report == "used again: nothing"


def test_the_inner_levels_run_at_every_third_step() -> None:
    _, network, report = run(Cache(inner_every=3))
    assert network.rows == [4] * 8
    assert network.inner == [4] * 3
    assert report == "used again: the inner levels in 5 of 8 calls"


def test_the_prediction_without_the_prompt_is_made_at_every_second_step() -> None:
    _, network, report = run(Cache(cfg_every=2))
    assert network.rows == [4, 2] * 4
    assert report == "used again: the prediction without the prompt in 4 of 8 steps"


def test_both_at_once() -> None:
    """The rows of each condition keep their own: those of the prompt alone are in the next call of both."""
    _, network, report = run(Cache(inner_every=2, cfg_every=2))
    assert network.rows == [4, 2] * 4
    assert network.inner == [4] * 4
    assert "4 of 8 calls" in report
    assert "4 of 8 steps" in report


def test_only_in_its_part_of_the_run() -> None:
    _, network, _ = run(Cache(inner_every=8, cfg_every=8, start_percent=0.5))
    assert network.rows == [4] * 4 + [2] * 4
    _, network, _ = run(Cache(inner_every=8, end_percent=0.5))
    assert network.inner == [4] + [4] * 3


def test_where_guidance_does_not_act_there_is_nothing_to_use_again() -> None:
    _, network, report = run(Cache(cfg_every=2), cfg=1.0)
    assert network.rows == [2] * 8
    assert "0 of 0 steps" in report


@pytest.mark.parametrize("threshold", [0.0, 1e-9, 1e9])
def test_a_change_beyond_the_threshold_runs_the_inner_levels(threshold: float) -> None:
    _, network, _ = run(Cache(inner_every=100, threshold=threshold))
    assert len(network.inner) == (8 if threshold == 1e-9 else 1)


def test_what_is_used_again_is_what_the_inner_levels_added() -> None:
    caching = CacheRun(Cache(inner_every=2))
    x = torch.randn(2, 3, 4, 4)

    def twice() -> tuple[Tensor, Tensor]:
        first, second = (caching.around_inner(["a", "b"], 0.0) for _ in range(2))
        assert first is not None
        assert second is not None
        return first(lambda x: x * 3, x), second(_fails, x + 1)

    now, later = twice()
    assert torch.equal(now, x * 3)
    assert relative_error(later, x * 3 + 1) < 1e-6


def test_latents_of_another_size_use_nothing_again() -> None:
    caching = CacheRun(Cache(inner_every=2))
    for side in (4, 5):
        around = caching.around_inner(["a"], 0.0)
        assert around is not None
        assert torch.equal(around(lambda x: x * 2, torch.ones(1, 3, side, 4)), torch.full((1, 3, side, 4), 2.0))


def _fails(_x: Tensor) -> Tensor:
    raise AssertionError("the inner levels ran")


@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
@torch.no_grad()
def test_the_network_asks_about_its_inner_levels(kind: str) -> None:
    net: Any = small.part(kind)
    arguments, x = _stage(net, kind)
    plain = net.denoise(x, torch.full((2,), 0.5), **arguments)

    def with_inner(around: Callable[..., Tensor]) -> Tensor:
        return net.denoise(x, torch.full((2,), 0.5), **arguments, around_inner=around)

    kept: list[Tensor] = []
    assert torch.equal(with_inner(lambda inner, x: kept.append(inner(x)) or kept[0]), plain)
    assert torch.equal(with_inner(lambda _, x: kept[0]), plain)
    assert relative_error(with_inner(lambda _, x: x), plain) > 1e-3


@torch.no_grad()
def test_residuals_reach_their_blocks_when_the_inner_levels_do_not_run() -> None:
    net: Any = small.part("stage_c")
    arguments, x = _stage(net, "stage_c")
    control = [torch.full((1, 16, 2, 2), float(number)) for number in range(1, len(net.blocks(ResBlock)) + 1)]
    r, entered = torch.full((2,), 0.5), []

    def result(around: Any) -> Tensor:
        return net.denoise(x, r, **arguments, control=control, around_inner=around)

    plain = result(lambda inner, x: entered.append(inner(x)) or entered[0])
    assert torch.equal(plain, net.denoise(x, r, **arguments, control=control))
    assert torch.equal(result(lambda _, x: entered[0]), plain)


def _stage(net: Any, kind: str) -> tuple[dict[str, Any], Tensor]:
    pooled = torch.randn(2, 1, small.POOLED)
    if kind == "stage_b":
        x = torch.randn(2, 4, 20, 24)
        return {"conditions": net.conditions(torch.randn(2, 16, 5, 6), pooled, size=x.shape[-2:])}, x
    embeddings = torch.randn(2, 7, small.TEXT), pooled, torch.randn(2, 1, small.IMAGE)
    return {"conditions": net.conditions(*embeddings)}, torch.randn(2, 16, 5, 6)


@pytest.mark.parametrize(
    "wrong", [{"inner_every": 0}, {"cfg_every": 0}, {"threshold": -1.0}, {"threshold": 0.1}, {"start_percent": 2.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        Cache(**wrong)
