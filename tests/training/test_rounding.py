"""Weights in bfloat16: rounding keeps the mean, small updates count, and a run goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cascade.errors import InvalidConfig
from cascade.training import fit
from cascade.training.loop import Trainer
from cascade.training.metrics import read_metrics
from cascade.training.rounding import rounded, rounded_step, to_bfloat16
from tests.training.test_loop import Regression, run, same, settings, weights

HALVES: dict[str, Any] = {"weights_dtype": "bfloat16", "precision": "bfloat16"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_mean_of_what_is_rounded_is_the_value(scale: float) -> None:
    values = torch.randn(50, generator=generator()) * scale
    draws = torch.stack([rounded(values, generator(seed)).double() for seed in range(4000)])
    gap = draws.amax(0) - draws.amin(0)
    below, above = draws.amin(0), draws.amax(0)
    assert all(len(draws[:, place].unique()) <= 2 for place in range(50))
    assert bool(((below <= values) & (values <= above)).all())
    # The deviation of the mean of 4000 draws is at most half of a gap / sqrt(4000).
    assert bool(((draws.mean(0) - values.double()).abs() <= 5 * 0.5 * gap / 4000**0.5).all())
    assert bool((gap <= values.abs().double() * 2**-7).all())


def test_what_bfloat16_holds_stays() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, float("inf"), -float("inf")])
    assert torch.equal(rounded(values, generator()).float(), values)
    assert rounded(torch.tensor(float("nan")).view(1), generator()).isnan().all()


def test_small_updates_are_not_lost_in_the_mean() -> None:
    weight = nn.Parameter(torch.ones(1000))
    to_bfloat16([nn.ParameterList([weight])])
    optimizer = torch.optim.SGD([weight], lr=1e-4)
    for step in range(100):
        weight.grad = torch.ones_like(weight)
        rounded_step(optimizer, step)
    nearest = torch.ones(1000, dtype=torch.bfloat16)
    for _ in range(100):
        nearest -= 1e-4
    assert bool((nearest == 1).all())
    # Of 100 updates of 1e-4. A step moves a weight by 2**-8 with probability 0.0256: the mean's deviation is 2e-4.
    assert weight.float().mean().item() == pytest.approx(0.99, abs=1e-3)


def test_averages_of_the_optimizer_are_rounded_too_and_batch_norms_are_not(tmp_path: Path) -> None:
    trainer = Trainer(Regression(), settings(tmp_path, **HALVES))
    trainer._train_step()
    dtypes = {p.dtype: {v.dtype for k, v in own.items() if k != "step"} for p, own in trainer.optimizer.state.items()}
    assert dtypes == {d: {d} for d in (torch.bfloat16, torch.float32)}
    norm: Any = trainer.task.modules["net"].get_submodule("1")
    assert norm.weight.dtype == norm.running_mean.dtype == torch.float32
    averaged = trainer.ema.state()["net"]
    assert {value.dtype for value in averaged.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.05), ("adafactor", 0.3)])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_it_learns_and_goes_on_exactly(tmp_path: Path, optimizer: str, rate: float, ema: float) -> None:
    changes = {**HALVES, "optimizer": optimizer, "learning_rate": rate, "steps": 60, "ema": ema, "sample_every": 30}
    run(tmp_path / "whole", Regression(noisy=False), **changes)
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole")]
    assert losses[-1] < 0.3 * losses[0]
    steps: list[int] = []
    config = settings(tmp_path / "parts", **changes)
    fit(Regression(noisy=False), config, on_step=lambda i, n, m: steps.append(i), should_stop=lambda: len(steps) >= 7)
    fit(Regression(noisy=False), config)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "float32"}, "needs precision: bfloat16"),
        ({"optimizer": "prodigy"}, "adamw or adafactor"),
        ({"shard": True}, "with shard the weights are float32"),
    ],
)
def test_what_it_does_not_go_with(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=f"weights_dtype: .*{words}"):
        Trainer(Regression(), settings(tmp_path, **{**HALVES, **changes}))
