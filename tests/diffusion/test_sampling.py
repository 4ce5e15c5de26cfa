"""The sampling loop: the reference's runs, networks whose answer is known, guidance, noise, bad input."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cascade.diffusion import (
    RELEASED_DIFFUSION,
    SAMPLERS,
    SCALINGS,
    SCHEDULES,
    TARGETS,
    Diffusion,
    Guidance,
    Kept,
    SamplingSettings,
    SeededNoise,
)
from cascade.diffusion import sample as sample_with
from cascade.diffusion.sampling import join_arguments
from tests.support import INDEX, golden, golden_network, relative_error

pytestmark = pytest.mark.numeric

CASES = [name for name, entry in INDEX.items() if entry["kind"] == "sample"]
SAMPLER_NAMES = {"DDPMSampler": "ddpm", "DDIMSampler": "ddim", "LCMSampler": "lcm"}


def sample(
    network: Any, x: Tensor, *, cond: Any, uncond: Any = None, loop: dict[str, Any] | None = None, **settings: Any
) -> Tensor:
    """`cascade.diffusion.sample` with the settings by their names; `loop` holds its own further arguments."""
    return sample_with(network, x, SamplingSettings(**settings), cond=cond, uncond=uncond, **(loop or {}))


class Recorder:
    """A network that writes down its calls: (batch size, r) each."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []

    def __call__(self, x: Tensor, r: Tensor, **cond: Any) -> Tensor:
        assert r.shape == x.shape[:1]
        self.calls.append((len(x), r[0].item()))
        shift = cond["shift"]
        return torch.tanh(x + shift.reshape(-1, *[1] * (x.ndim - 1)))

    @property
    def batches(self) -> list[int]:
        return [batch for batch, _ in self.calls]


def start(batch: int = 2, seed: int = 0) -> Tensor:
    return SeededNoise(range(seed, seed + batch)).start(4, 3, 3)


def exact(x0: Tensor, diffusion: Diffusion = RELEASED_DIFFUSION, schedule: str = "cosine", shift: float = 1.0) -> Any:
    """A network that knows the image: its prediction is exact for whatever noise is in x."""
    steps = SCHEDULES[schedule]()(torch.linspace(0, 1, 100_001, dtype=torch.float64), shift)
    r_of_step = diffusion.noise_condition(steps)

    def network(x: Tensor, r: Tensor) -> Tensor:
        log_snr = steps[(r_of_step - r[0]).abs().argmin()]
        a, b = (value.item() for value in diffusion.scaling(log_snr))
        return diffusion.target(x0, (x - a * x0) / b, log_snr, a, b)

    return network


def guidance_of(config: dict[str, Any]) -> Guidance:
    first, last = config["cfg"] if isinstance(config["cfg"], list) else (config["cfg"], None)
    return Guidance(
        cfg=first,
        cfg_rescale=config.get("cfg_rho", 0.7),
        cfg_end=last,
        start_percent=1 - config.get("cfg_t_start", 1.0),
        end_percent=1 - config.get("cfg_t_stop", 0.0),
        per_image=False,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cached", [False, True])
def test_runs_equal_the_reference(case: str, cached: bool) -> None:
    data, config = golden(case), INDEX[case]["config"]
    network: Any = golden_network(config["model"])
    conditions = [
        {name.removeprefix(side): value for name, value in data.items() if name.startswith(side)}
        for side in ("cond.", "uncond.")
    ]
    if cached:
        conditions = [{"conditions": network.conditions(**side)} for side in conditions]
    x0 = sample(
        network.denoise if cached else network,
        data["x_init"],
        cond=conditions[0],
        uncond=None if config["cfg"] is None else conditions[1],
        steps=config["timesteps"],
        sampler_name=SAMPLER_NAMES[config["sampler"]],
        shift=config.get("shift", 1.0),
        start_percent=1 - config.get("t_start", 1.0),
        guidance=Guidance() if config["cfg"] is None else guidance_of(config),
        loop={"noise": lambda like, step: data[f"noise_{step}"]},
    )
    assert relative_error(x0, data["x0"]) < 1e-3


@pytest.mark.parametrize("target", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_exact_network_gives_its_image_back(sampler: str, target: str) -> None:
    x0, diffusion = start(seed=5).double(), Diffusion(target=TARGETS[target]())
    result = sample(
        exact(x0, diffusion), start().double(), cond={}, steps=7, sampler_name=sampler, loop={"diffusion": diffusion}
    )
    torch.testing.assert_close(result, x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_between_equal_noise_levels_do_no_harm(sampler: str) -> None:
    """At shift 2 the released schedule has its first level twice in 90 steps."""
    levels = [level.log_snr for level in SamplingSettings(steps=90, shift=2.0).noise_levels()]
    assert len(set(levels)) < len(levels)
    x0 = start(seed=5).double()
    result = sample(exact(x0, shift=2.0), start().double(), cond={}, steps=90, shift=2.0, sampler_name=sampler)
    torch.testing.assert_close(result, x0, rtol=1e-3, atol=1e-3)


def test_rectified_flow_with_its_own_setting() -> None:
    diffusion = Diffusion(
        SCHEDULES["rectified_flow"](),
        SCALINGS["lerp"](),
        TARGETS["rectified_flow"](),
        RELEASED_DIFFUSION.noise_condition,
    )
    x0 = start(seed=5).double()
    network = exact(x0, diffusion, "rectified_flow")
    result = sample(network, start().double(), cond={}, steps=6, sampler_name="ddim", loop={"diffusion": diffusion})
    torch.testing.assert_close(result, x0, rtol=1e-3, atol=1e-3)


MEAN, DEVIATION = 3.0, 0.5


def gaussian(x: Tensor, r: Tensor) -> Tensor:
    """The best prediction for data N(MEAN, DEVIATION^2)."""
    # r is the cosine t, so log_snr follows; epsilon = b (x - a mean) / (a^2 deviation^2 + b^2).
    a, b = SCALINGS["vp"]()(SCHEDULES["cosine"]()(r[0].double()))
    return (b * (x - a * MEAN) / (a**2 * DEVIATION**2 + b**2)).to(x)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "res_multistep"])
def test_multistep_samplers_are_closer_to_the_solution(sampler: str) -> None:
    """Of the probability flow, which DDIM follows to first order."""
    x = start().double()
    solution = sample(gaussian, x, cond={}, steps=1000, sampler_name="ddim")
    first, second = (sample(gaussian, x, cond={}, steps=20, sampler_name=name) for name in ("ddim", sampler))
    assert relative_error(second, solution) < 0.1 * relative_error(first, solution)


def test_ddim_reaches_the_data_of_a_gaussian() -> None:
    """Many steps of the best prediction turn noise into the data's distribution."""
    mean, deviation = MEAN, DEVIATION
    x = SeededNoise(range(4)).start(4, 16, 16)
    for sampler in ("ddim", "ddpm"):
        result = sample(gaussian, x, cond={}, steps=100, sampler_name=sampler)
        assert result.mean().item() == pytest.approx(mean, abs=0.05)
        assert result.std().item() == pytest.approx(deviation, abs=0.05)


def test_ddim_with_eta_1_is_ddpm() -> None:
    arguments: dict[str, Any] = {"cond": {"shift": torch.zeros(2)}, "steps": 4}
    ddpm = sample(Recorder(), start(), sampler_name="ddpm", **arguments)
    assert relative_error(sample(Recorder(), start(), sampler_name=SAMPLERS["ddim"](eta=1.0), **arguments), ddpm) < 1e-6
    assert relative_error(sample(Recorder(), start(), sampler_name="ddim", **arguments), ddpm) > 1e-3


@settings(max_examples=20)
@given(row=st.integers(0, 3), sampler=st.sampled_from(sorted(SAMPLERS)), per_seed=st.booleans())
def test_an_image_is_the_same_alone_or_in_a_batch(row: int, sampler: str, per_seed: bool) -> None:
    x, shift = start(4), torch.arange(4.0)

    def run(rows: slice) -> Tensor:
        noise = SeededNoise(list(range(10, 14))[rows]) if per_seed else None
        sides = {"cond": {"shift": shift[rows]}, "uncond": {"shift": -shift[rows]}}
        return sample(Recorder(), x[rows], steps=3, sampler_name=sampler, loop={"noise": noise}, **sides)

    assert relative_error(run(slice(None))[row], run(slice(row, row + 1))[0]) < 1e-6


def test_seeded_noise_belongs_to_seed_step_and_stream() -> None:
    like = torch.empty(3, 4, 3, 3, dtype=torch.float64)
    noise = SeededNoise([1, 2, 1])(like, 0)
    assert noise.dtype == torch.float64
    assert torch.equal(noise[0], noise[2])
    others = [noise[1], SeededNoise([1])(like[:1], 1)[0], SeededNoise([1], "stage_b")(like[:1], 0)[0]]
    others.append(SeededNoise([1]).start(4, 3, 3).double()[0])
    assert not any(torch.equal(noise[0], other) for other in others)
    assert torch.equal(SeededNoise([2])(like[:1], 0)[0], noise[1])
    big = SeededNoise([2**64 + 5, -1]).start(16, 40, 40)
    assert abs(big.mean().item()) < 0.02
    assert big.std().item() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="2 seeds for a batch of 3"):
        SeededNoise([1, 2])(like, 0)


def test_guidance_costs_one_call_of_both_or_two_of_different_shape() -> None:
    x, both = start(), {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}}
    joined = Recorder()
    together = sample(joined, x, steps=3, **both)
    assert joined.batches == [4, 4, 4]

    apart = Recorder()
    both["uncond"] = {"shift": torch.zeros(1)}
    assert relative_error(sample(apart, x, steps=3, **both), together) < 1e-6
    assert apart.batches == [2] * 6


@pytest.mark.parametrize(
    ("guidance", "batches"),
    [
        (Guidance(1.0), [2] * 5),
        (Guidance(1.0, cfg_rescale=0.0), [2] * 5),
        (Guidance(4.0, start_percent=0.2, end_percent=0.6), [2, 4, 4, 4, 2]),
        (Guidance(4.0, start_percent=0.3, end_percent=0.4), [2, 2, 4, 2, 2]),
        (Guidance(3.0, cfg_end=1.0), [4] * 5),
    ],
)
def test_the_unconditional_call_is_made_only_where_it_counts(guidance: Guidance, batches: list[int]) -> None:
    network = Recorder()
    both = {"cond": {"shift": torch.ones(2)}, "uncond": {"shift": torch.zeros(2)}}
    sample(network, start(), steps=5, guidance=guidance, **both)
    assert network.batches == batches


def test_without_unconditional_conditions_there_is_no_guidance() -> None:
    network = Recorder()
    cond = {"shift": torch.ones(2)}
    alone = sample(network, start(), cond=cond, steps=3)
    assert network.batches == [2] * 3
    uncond = {"shift": torch.zeros(2)}
    assert torch.equal(sample(Recorder(), start(), cond=cond, uncond=uncond, steps=3, guidance=Guidance(1.0)), alone)


def test_rescaling_brings_back_the_deviation_of_each_image() -> None:
    cond, uncond = torch.randn(3, 4, 5, 5) * torch.tensor([1.0, 2.0, 5.0]).reshape(3, 1, 1, 1), torch.randn(3, 4, 5, 5)
    guided = Guidance(6.0, cfg_rescale=1.0).combine(cond, uncond, 0.5)
    torch.testing.assert_close(guided.std((1, 2, 3)), cond.std((1, 2, 3)))
    whole = Guidance(6.0, cfg_rescale=1.0, per_image=False).combine(cond, uncond, 0.5)
    torch.testing.assert_close(whole.std(), cond.std())
    assert not torch.allclose(whole.std((1, 2, 3)), cond.std((1, 2, 3)))
    torch.testing.assert_close(Guidance(6.0, cfg_rescale=0.0).combine(cond, uncond, 0.5), uncond + 6 * (cond - uncond))


def test_the_scale_goes_from_first_to_last() -> None:
    guidance = Guidance(6.0, cfg_end=2.0)
    assert [guidance.cfg_at(percent) for percent in (0.0, 0.5, 1.0)] == [6.0, 4.0, 2.0]


class Pair(NamedTuple):
    text: Tensor
    control: list[Tensor | None]


def test_trees_of_conditions_are_joined_leaf_by_leaf() -> None:
    def tree(value: float, length: int = 3) -> dict[str, Any]:
        return {"pair": Pair(torch.full((2, length), value), [None, torch.full((2, 1), value)]), "none": None}

    joined = join_arguments(tree(1.0), tree(0.0), 2)
    assert joined is not None
    assert isinstance(joined["pair"], Pair)
    assert joined["none"] is None
    assert joined["pair"].text[:, 0].tolist() == [1, 1, 0, 0]
    assert joined["pair"].control[0] is None
    assert joined["pair"].control[1].shape == (4, 1)

    assert join_arguments(tree(1.0), tree(0.0, length=4), 2) is None
    assert join_arguments(tree(1.0), tree(0.0), 3) is None
    assert join_arguments(tree(1.0), {**tree(0.0), "none": torch.zeros(2)}, 2) is None
    assert join_arguments(tree(1.0), {"pair": tree(0.0)["pair"]}, 2) is None
    half = {"x": torch.zeros(2, 3).half()}
    assert join_arguments({"x": torch.zeros(2, 3)}, half, 2) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_network_sees_the_dtype_of_x(dtype: torch.dtype) -> None:
    x0 = start(seed=5)

    def network(x: Tensor, r: Tensor) -> Tensor:
        assert x.dtype == dtype
        assert r.dtype == torch.float32
        return exact(x0)(x.float(), r).to(dtype)

    seen = []
    result = sample(
        network, start().to(dtype), cond={}, steps=8, loop={"on_step": lambda i, n, x0: seen.append(x0.dtype)}
    )
    assert result.dtype == dtype
    assert seen == [dtype] * 8
    torch.testing.assert_close(result.float(), x0, rtol=0.05, atol=0.1)


def test_steps_are_reported_and_can_be_stopped() -> None:
    seen: list[tuple[int, int]] = []
    last: list[Tensor] = []

    def on_step(i: int, n: int, x0: Tensor) -> None:
        seen.append((i, n))
        last[:] = [x0]

    result = sample(Recorder(), start(), cond={"shift": torch.ones(2)}, steps=3, loop={"on_step": on_step})
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert torch.equal(last[0], result)

    def stop(i: int, n: int, x0: Tensor) -> None:
        raise InterruptedError

    network = Recorder()
    with pytest.raises(InterruptedError):
        sample(network, start(), cond={"shift": torch.ones(2)}, steps=3, loop={"on_step": stop})
    assert len(network.calls) == 1


def test_x_is_left_alone_and_nothing_is_tracked() -> None:
    x = start().requires_grad_()
    before = x.detach().clone()
    result = sample(Recorder(), x, cond={"shift": torch.ones(2)}, steps=2)
    assert not result.requires_grad
    assert torch.equal(x, before)


def test_r_follows_shift_schedule_and_times() -> None:
    network = Recorder()
    sample(
        network,
        start(),
        cond={"shift": torch.ones(2)},
        steps=2,
        schedule="linear",
        shift=2.0,
        start_percent=0.2,
        end_percent=0.8,
    )
    log_snr = SCHEDULES["linear"]()(torch.tensor([0.8, 0.5]), 2.0)
    assert [r for _, r in network.calls] == pytest.approx(
        RELEASED_DIFFUSION.noise_condition(log_snr).tolist(), abs=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"start_percent": 0.3, "end_percent": 0.3}, ValueError, "start_percent 0.3"),
        ({"start_percent": -0.5}, ValueError, "start_percent -0.5"),
        ({"start_percent": math.nan}, ValueError, "start_percent nan"),
        ({"shift": 0.0}, ValueError, "shift"),
        ({"sampler_name": "euler"}, KeyError, "unknown sampler 'euler'; known are: ddpm, ddim, lcm"),
        ({"schedule": "euler"}, KeyError, "unknown schedule 'euler'.*cosine"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample(Recorder(), start(), **{"cond": {"shift": torch.ones(2)}, "steps": 2, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"cfg": math.nan},
        {"cfg": math.inf},
        {"cfg_end": math.nan},
        {"cfg_rescale": math.nan},
        {"start_percent": 0.4, "end_percent": 0.2},
        {"end_percent": math.nan},
    ],
)
def test_bad_guidance(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Guidance(**arguments)


def test_what_is_kept_stays_and_the_rest_is_drawn() -> None:
    source, noise = start(seed=9), start()
    mask = torch.zeros(1, 1, 3, 3)
    mask[..., 2], mask[..., 1] = 1, 0.5
    kept = Kept(source, mask, noise)
    seen: list[Tensor] = []

    def network(x: Tensor, r: Tensor) -> Tensor:
        seen.append(x)
        return torch.tanh(x)

    for sampler in SAMPLERS:
        seen.clear()
        result = sample(network, noise, cond={}, steps=4, sampler_name=sampler, loop={"kept": kept})
        assert torch.equal(result[..., 0], source[..., 0])
        assert not torch.allclose(result[..., 1:], source[..., 1:], atol=0.1)
        a, b = SCALINGS["vp"]()(SCHEDULES["cosine"]()(torch.tensor([0.75], dtype=torch.float64)))
        torch.testing.assert_close(seen[1][..., 0], (a * source + b * noise)[..., 0].float())
    everything = Kept(source, torch.ones(1, 1, 3, 3), noise)
    torch.testing.assert_close(
        sample(network, noise, cond={}, steps=4, loop={"kept": everything}), sample(network, noise, cond={}, steps=4)
    )
