"""Inversion: the noise with which the sampling loop ends at a given image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.diffusion import Guidance, Inverted, Inverting, SamplingSettings, SeededNoise, sample
from tests.support import relative_error

pytestmark = pytest.mark.numeric

COND, UNCOND = {"shift": torch.tensor([0.5, -0.2, 1.0])}, {"shift": torch.zeros(3)}


def network(x: Tensor, r: Tensor, **cond: Tensor) -> Tensor:
    shift = cond["shift"]
    return torch.tanh(x.roll(1, -1) + shift.reshape(-1, 1, 1, 1) * r.reshape(-1, 1, 1, 1))


def images() -> Tensor:
    return torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(1))


def inverted(settings: SamplingSettings, rows: tuple[int, ...] = (0, 1, 2), **loop: Any) -> Inverted:
    image = images()[list(rows)]
    inverting = Inverting(image, settings, SeededNoise([1 + row for row in rows]))
    conds = {name: {"shift": cond["shift"][list(rows)]} for name, cond in (("cond", COND), ("uncond", UNCOND))}
    first = settings.noise_levels()[0]
    x = first.a * image + first.b * inverting.starts[0]
    return inverting.found(sample(network, x, settings, **conds, noise=inverting, on_step=inverting.on_step, **loop))


def again(found: Inverted, settings: SamplingSettings, skip: int = 0, **loop: Any) -> Tensor:
    run = SamplingSettings(
        steps=settings.steps - skip,
        start_percent=skip / settings.steps,
        shift=settings.shift,
        sampler_name=settings.sampler_name,
        guidance=settings.guidance,
    )
    first, rest = run.noise_levels()[0], found.skipping(skip)
    x = first.a * images() + first.b * rest.start(4, 6, 5)
    return sample(network, x, run, noise=rest, **{"cond": COND, "uncond": UNCOND, **loop}) + rest.rest


@pytest.mark.parametrize("steps", [1, 2, 20, 90], ids=lambda n: f"{n} steps")  # at 90, some levels are equal
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_run_ends_at_the_image(steps: int, cfg: float):
    settings = SamplingSettings(steps=steps, shift=2.0, guidance=Guidance(cfg=cfg))
    assert relative_error(again(inverted(settings), settings), images()) < 1e-4


@pytest.mark.parametrize("skip", [1, 7, 9])
def test_a_run_without_its_first_steps_does_too(skip: int):
    settings = SamplingSettings(steps=10, shift=2.0)
    assert relative_error(again(inverted(settings), settings, skip), images()) < 1e-4


def test_another_prompt_leads_elsewhere_and_less_so_in_a_shorter_run():
    settings, other = SamplingSettings(steps=10, shift=2.0), {"shift": torch.full((3,), -2.0)}
    found = inverted(settings)
    far, near = (relative_error(again(found, settings, skip, cond=other), images()) for skip in (0, 8))
    assert far > 2 * near > 1e-3


def test_an_image_does_not_depend_on_the_others():
    settings = SamplingSettings(steps=4)
    alone, all_ = inverted(settings, rows=(1,)), inverted(settings)
    assert relative_error(all_.of([1]).added, alone.added) < 1e-5
    joined = Inverted.join([all_.of([0]), all_.of([2, 1])])
    assert torch.equal(joined.of([0, 2, 1]).starts, all_.starts)
