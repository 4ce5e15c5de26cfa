"""Schedules, scalings, targets, noise conditions, loss weights: the reference's numbers, and what must always hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascade.diffusion import LOSS_WEIGHTS, NOISE_CONDITIONS, SAMPLERS, SCALINGS, SCHEDULES, TARGETS
from tests.support import golden, relative_error

GDF = golden("gdf")
FIXED_SCHEDULES = {
    "cosine": "CosineSchedule",
    "cosine2": "CosineSchedule2",
    "sqrt": "SqrtSchedule",
    "rectified_flow": "RectifiedFlowsSchedule",
    "edm": "EDMSampleSchedule",
    "linear": "LinearSchedule",
    "stable_diffusion": "StableDiffusionSchedule",
}
REFERENCE_TARGETS = {"epsilon": "Epsilon", "x0": "X0", "v": "V", "rectified_flow": "RectifiedFlows"}
REFERENCE_CONDITIONS = {
    "cosine_t": "CosineT",
    "edm": "EDM",
    "sigmoid": "Sigmoid",
    "log_snr": "LogSNR",
    "edm_sigma": "EDMSigma",
    "rectified_flow": "RectifiedFlows",
}
REFERENCE_WEIGHTS = {
    "constant": "Constant",
    "snr": "SNR",
    "p2": "P2",
    "snr_plus_one": "SNRPlusOne",
    "min_snr": "MinSNR",
    "min_snr_plus_one": "MinSNRPlusOne",
    "truncated_snr": "TruncatedSNR",
    "sech": "Sech",
    "debiased": "Debiased",
    "sigmoid": "Sigmoid",
}
unit = st.floats(0, 1)
levels = st.floats(-9, 9)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_released_setting_equals_the_reference(shift: int) -> None:
    log_snr = SCHEDULES["cosine"]()(GDF["t"], shift=float(shift))
    a, b = SCALINGS["vp"]()(log_snr)
    assert relative_error(log_snr, GDF[f"logsnr_shift{shift}"]) < 1e-4
    assert relative_error(a, GDF[f"a_shift{shift}"]) < 1e-4
    assert relative_error(b, GDF[f"b_shift{shift}"]) < 1e-4
    assert relative_error(NOISE_CONDITIONS["cosine_t"]()(log_snr), GDF[f"r_shift{shift}"]) < 1e-4


@pytest.mark.parametrize(("name", "reference"), FIXED_SCHEDULES.items())
def test_schedules_equal_the_reference(name: str, reference: str) -> None:
    assert relative_error(SCHEDULES[name]()(GDF["t_inner"]), GDF[f"schedule.{reference}"]) < 1e-4


@pytest.mark.parametrize(("name", "reference"), REFERENCE_WEIGHTS.items())
def test_loss_weights_equal_the_reference(name: str, reference: str) -> None:
    weight = LOSS_WEIGHTS[name]()
    assert relative_error(weight(GDF["logsnr"]), GDF[f"loss_weight.{reference}"]) < 1e-4
    assert relative_error(weight(GDF["logsnr"], shift=2.0), GDF[f"loss_weight_shift2.{reference}"]) < 1e-4


@pytest.mark.parametrize(("name", "reference"), REFERENCE_CONDITIONS.items())
def test_noise_conditions_equal_the_reference(name: str, reference: str) -> None:
    assert relative_error(NOISE_CONDITIONS[name]()(GDF["logsnr"]), GDF[f"noise_cond.{reference}"]) < 1e-4


def test_lerp_equals_the_reference() -> None:
    a, b = SCALINGS["lerp"]()(GDF["logsnr"])
    assert relative_error(a, GDF["lerp.a"]) < 1e-4
    assert relative_error(b, GDF["lerp.b"]) < 1e-4


@pytest.mark.parametrize(("name", "reference"), REFERENCE_TARGETS.items())
def test_targets_equal_the_reference(name: str, reference: str) -> None:
    target = TARGETS[name]()
    a, b = SCALINGS["vp"]()(GDF["logsnr"])
    level = (GDF["logsnr"], a, b)
    wanted = GDF[f"target.{reference}"]
    assert relative_error(target(GDF["x0"], GDF["eps"], *level), wanted) < 1e-4
    assert relative_error(target.x0(GDF["noised"], wanted, *level), GDF[f"target.{reference}.x0"]) < 1e-4
    assert relative_error(target.epsilon(GDF["noised"], wanted, *level), GDF[f"target.{reference}.epsilon"]) < 1e-4


@given(log_snr=levels, name=st.sampled_from(sorted(TARGETS)), seed=st.integers(0, 1000))
def test_x0_and_epsilon_come_back_from_the_target(log_snr: float, name: str, seed: int) -> None:
    level = torch.full((2,), log_snr, dtype=torch.float64)
    # The velocity of rectified flows is defined on the straight line alone.
    for scaling in ("lerp",) if name == "rectified_flow" else ("vp", "lerp"):
        a, b = SCALINGS[scaling]()(level)
        x0, epsilon = numbers(2, 3, 2, seed=seed), numbers(2, 3, 2, seed=seed + 1)
        noised = a.reshape(2, 1, 1) * x0 + b.reshape(2, 1, 1) * epsilon
        prediction = TARGETS[name]()(x0, epsilon, level, a, b)
        torch.testing.assert_close(TARGETS[name]().x0(noised, prediction, level, a, b), x0)
        torch.testing.assert_close(TARGETS[name]().epsilon(noised, prediction, level, a, b), epsilon)


@given(log_snr=st.floats(-15, 15))
def test_scalings_have_the_level_they_are_asked_for(log_snr: float) -> None:
    for name, total in (("vp", lambda a, b: a**2 + b**2), ("lerp", lambda a, b: a + b)):
        a, b = SCALINGS[name]()(torch.tensor(log_snr, dtype=torch.float64))
        assert total(a, b).item() == pytest.approx(1)
        assert 2 * math.log(a / b) == pytest.approx(log_snr, abs=1e-9)


@given(t=unit, shift=st.floats(0.1, 10), name=st.sampled_from(sorted(SCHEDULES)))
def test_shift_only_moves_log_snr(t: float, shift: float, name: str) -> None:
    schedule = SCHEDULES[name]()
    low, high = schedule.limits
    moved = schedule(t).item() - 2 * math.log(shift)
    assert schedule(t, shift=shift).item() == pytest.approx(min(max(moved, low), high), abs=1e-4)


@given(first=unit, second=unit, name=st.sampled_from(sorted(SCHEDULES)))
def test_schedules_fall_with_t(first: float, second: float, name: str) -> None:
    t = torch.tensor(sorted((first, second)), dtype=torch.float64)
    clean, noisy = SCHEDULES[name]()(t).tolist()
    assert clean >= noisy
    assert math.isfinite(clean)
    assert math.isfinite(noisy)


@given(t=st.floats(0.01, 0.99))
def test_noise_conditions_invert_their_schedules(t: float) -> None:
    for condition, schedule, wanted in (
        ("cosine_t", "cosine", t),
        ("stable_diffusion", "stable_diffusion", t),
        ("rectified_flow", "rectified_flow", 1 - t),
    ):
        log_snr = SCHEDULES[schedule]()(torch.tensor([t], dtype=torch.float64))
        assert NOISE_CONDITIONS[condition]()(log_snr).item() == pytest.approx(wanted, abs=1e-6)


def test_discrete_condition_counts_whole_steps() -> None:
    log_snr = SCHEDULES["cosine"]()(torch.tensor([0.25004, 0.5004]))
    steps = NOISE_CONDITIONS["discrete"](steps=100)(log_snr)
    assert steps.dtype == torch.int64
    assert steps.tolist() == [25, 50]


def test_half_precision_times_are_computed_in_float32() -> None:
    t = torch.linspace(0, 1, 9)
    log_snr = SCHEDULES["cosine"]()(t.bfloat16())
    assert log_snr.dtype == torch.float32
    torch.testing.assert_close(log_snr, SCHEDULES["cosine"]()(t))


def test_edm_train_is_a_normal_distribution() -> None:
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    log_snr = SCHEDULES["edm_train"]()(t)
    assert log_snr.mean().item() == pytest.approx(-2.4, abs=0.01)
    assert log_snr.std().item() == pytest.approx(2.4, abs=0.01)


def test_interpolated_schedule_is_its_parts_at_the_ends() -> None:
    linear, cosine = SCHEDULES["linear"](), SCHEDULES["cosine"]()
    schedule = SCHEDULES["interpolated"](linear, cosine, shifts=(2.0, 1.0))
    assert schedule(1.0).item() == pytest.approx(linear(1.0, 2.0).item(), abs=1e-4)
    assert schedule(0.0).item() == pytest.approx(cosine(0.0).item(), abs=1e-4)
    middle = 0.5 * linear(0.5, 2.0) + 0.5 * cosine(0.5)
    assert schedule(0.5).item() == pytest.approx(middle.item(), abs=1e-5)


def test_adaptive_schedule_goes_where_the_loss_is_high() -> None:
    schedule = SCHEDULES["adaptive"]()
    t = (torch.arange(10_000) + 0.5) / 10_000
    torch.testing.assert_close(schedule(t), SCHEDULES["linear"]()(t), atol=1e-3, rtol=0)
    for _ in range(200):
        schedule.learn(torch.linspace(-9.9, 9.9, 1000), torch.where(torch.linspace(-9.9, 9.9, 1000) > 0, 3.0, 1.0))
    assert (schedule(t) > 0).float().mean().item() == pytest.approx(0.5 + 0.25 * (1 - 0.99**200), abs=0.05)

    again = SCHEDULES["adaptive"]()
    again.load_state_dict(schedule.state_dict())
    assert torch.equal(again(t), schedule(t))


def test_adaptive_weight_learns_each_level() -> None:
    weight = LOSS_WEIGHTS["adaptive"]()
    log_snr = torch.tensor([-20.0, -5.0, 0.0, 5.0, 20.0])
    loss = torch.tensor([0.5, 0.25, 1.0, 2.0, 4.0])
    assert weight(log_snr).tolist() == [1.0] * 5
    for _ in range(2000):
        weight.learn(log_snr, loss)
    torch.testing.assert_close(weight(log_snr), 1 / loss, rtol=1e-4, atol=0)
    assert weight(torch.tensor([2.5])).item() == 1.0

    again = LOSS_WEIGHTS["adaptive"]()
    again.load_state_dict(weight.state_dict())
    assert torch.equal(again(log_snr), weight(log_snr))


def test_one_step_of_learning_is_the_mean_of_what_fell_into_the_bucket() -> None:
    weight = LOSS_WEIGHTS["adaptive"](decay=0.5)
    weight.learn(torch.tensor([1.0, 1.0, 1.0, 3.0]), torch.tensor([2.0, 4.0, math.inf, math.nan]))
    assert weight(torch.tensor([1.0, 3.0])).tolist() == [0.5, 1.0]


def test_composed_weight_multiplies_divides_and_keeps_its_parts_state() -> None:
    p2, snr, adaptive = LOSS_WEIGHTS["p2"](), LOSS_WEIGHTS["snr"](), LOSS_WEIGHTS["adaptive"](decay=0.5)
    log_snr = torch.tensor([-2.0, 0.0, 3.0])
    composed = LOSS_WEIGHTS["composed"](mul=[snr, adaptive], div=[p2])
    torch.testing.assert_close(composed(log_snr, shift=2.0), snr(log_snr, 2.0) / p2(log_snr, 2.0))
    composed.learn(log_snr, torch.full((3,), 3.0))
    torch.testing.assert_close(adaptive(log_snr), torch.full((3,), 0.5))

    again = LOSS_WEIGHTS["composed"](mul=[snr, LOSS_WEIGHTS["adaptive"]()], div=[p2])
    again.load_state_dict(composed.state_dict())
    torch.testing.assert_close(again(log_snr), composed(log_snr))
    assert LOSS_WEIGHTS["composed"]()(log_snr).tolist() == [1.0] * 3


@pytest.mark.parametrize("registry", [SCHEDULES, SCALINGS, TARGETS, NOISE_CONDITIONS, LOSS_WEIGHTS, SAMPLERS])
def test_every_name_makes_something_and_an_unknown_one_lists_them(registry: dict) -> None:
    for factory in registry.values():
        assert callable(factory())
    with pytest.raises(KeyError, match="'euler'.*" + ".*".join(registry)):
        registry["euler"]


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_a_shift_must_be_positive(shift: float) -> None:
    with pytest.raises(ValueError, match="shift"):
        SCHEDULES["cosine"]()(0.5, shift=shift)
