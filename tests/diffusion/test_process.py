"""The setting that training and sampling share."""

from __future__ import annotations

import pytest
import torch

from cascade.diffusion import LOSS_WEIGHTS, RELEASED_DIFFUSION, SCALINGS, SCHEDULES, TARGETS, Diffusion
from tests.support import golden, relative_error


def test_noised_equals_the_reference() -> None:
    gdf = golden("gdf")
    assert relative_error(RELEASED_DIFFUSION.noised(gdf["x0"], gdf["eps"], gdf["logsnr"]), gdf["noised"]) < 1e-4


def test_a_training_batch_agrees_with_its_parts() -> None:
    x0, epsilon = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    t = torch.tensor([0.1, 0.5, 1.0])
    batch = RELEASED_DIFFUSION.training_batch(x0, t, epsilon, shift=2.0, loss_shift=0.5)
    log_snr = SCHEDULES["cosine"]()(t, 2.0)
    torch.testing.assert_close(batch.log_snr, log_snr)
    torch.testing.assert_close(batch.noised, RELEASED_DIFFUSION.noised(x0, epsilon, log_snr))
    torch.testing.assert_close(batch.weight, LOSS_WEIGHTS["p2"]()(log_snr, 0.5))
    assert torch.equal(batch.target, epsilon)
    a, b = SCALINGS["vp"]()(log_snr)
    torch.testing.assert_close(
        RELEASED_DIFFUSION.target.x0(batch.noised, epsilon, log_snr, a, b), x0, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("target", TARGETS)
def test_half_precision_stays_half(target: str) -> None:
    x0 = torch.randn(2, 4, 2, 2, dtype=torch.bfloat16)
    batch = Diffusion(target=TARGETS[target]()).training_batch(x0, torch.tensor([0.2, 0.9]), torch.randn_like(x0))
    assert batch.noised.dtype == batch.target.dtype == torch.bfloat16
    assert batch.r.dtype == batch.weight.dtype == batch.log_snr.dtype == torch.float32


def test_what_was_learnt_is_saved_and_restored() -> None:
    def make() -> Diffusion:
        return Diffusion(schedule=SCHEDULES["adaptive"](), loss_weight=LOSS_WEIGHTS["adaptive"]())

    first, second = make(), make()
    log_snr = torch.tensor([-3.0, 0.0, 3.0])
    first.learn(log_snr, torch.tensor([0.1, 0.2, 3.0]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.loss_weight(log_snr), first.loss_weight(log_snr))
    assert torch.equal(second.schedule(torch.linspace(0, 1, 50)), first.schedule(torch.linspace(0, 1, 50)))
    assert RELEASED_DIFFUSION.state_dict() == {}
    with pytest.raises(KeyError, match=r"loss_weight\.losses"):
        second.load_state_dict({})
