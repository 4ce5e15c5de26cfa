"""ControlNets in whole runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cascade.errors import IncompatibleCheckpoint
from cascade.models import ControlNet, ControlNetConfig, initialize
from cascade.pipelines import Control, Parts, SamplingSettings, Settings, generate
from tests.small import small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric

FEW = Settings(
    width=96,
    height=96,
    stage_c=SamplingSettings(steps=4, guidance=Settings().stage_c.guidance, shift=2.0),
    stage_b=SamplingSettings(steps=1, guidance=Settings().stage_b.guidance, shift=1.0),
)
PROMPTS, SEEDS = ["a cat", "a dog"], [1, 2]


class Counted(ControlNet):
    calls = 0

    def forward(self, hint: torch.Tensor) -> list[Any]:
        self.calls += 1
        return super().forward(hint)


def net(seed: int = 0, **config: Any) -> Counted:
    torch.manual_seed(seed)
    made = Counted(
        ControlNetConfig(**{"in_channels": 5, "width": 16, "blocks": (0, 2), "backbone": "simple", **config})
    )
    initialize(made)
    for projection in made.projections:
        torch.nn.init.normal_(projection[2].weight, std=0.2)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(small_cascade())


def latents(parts: Parts, *controls: Control, settings: Settings = FEW) -> torch.Tensor:
    return generate(parts, PROMPTS, seeds=SEEDS, settings=settings, controls=controls).stage_c


def hint(batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 5, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_the_hint_is_read_once_and_changes_the_image(parts: Parts) -> None:
    control = Control(net=net(), hint=hint())
    assert relative_error(latents(parts, control), latents(parts)) > 1e-3
    assert control.net.calls == 1


def test_strength_0_and_an_empty_part_of_the_run_change_nothing(parts: Parts) -> None:
    plain, control = latents(parts), Control(net=net(), hint=hint())
    assert torch.equal(latents(parts, replace(control, strength=0.0)), plain)
    assert torch.equal(latents(parts, replace(control, start_percent=0.4, end_percent=0.45)), plain)


def test_each_image_has_its_own_hint(parts: Parts) -> None:
    both = latents(parts, Control(net=net(), hint=hint(2)))
    second = latents(parts, Control(net=net(), hint=hint(2)[1:]))
    assert relative_error(both[1], second[1]) < 1e-5
    assert relative_error(both[0], second[0]) > 1e-3


def test_several_nets_add_up(parts: Parts) -> None:
    one = Control(net=net(), hint=hint(), strength=0.5)
    assert relative_error(latents(parts, one, one), latents(parts, replace(one, strength=1.0))) < 1e-5
    longer = Control(net=net(1, blocks=(1, 3)), hint=hint())
    assert relative_error(latents(parts, one, longer), latents(parts, longer, one)) < 1e-5


@pytest.mark.parametrize(("start", "end", "expected"), [(0.0, 0.4, 2), (0.5, 1.0, 2), (0.0, 1.0, 4)])
def test_it_acts_in_its_part_of_the_run_alone(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, start: float, end: float, expected: int
) -> None:
    stage_c: Any = parts.sources["stage_c"]
    seen = []
    denoise = stage_c.denoise
    monkeypatch.setattr(stage_c, "denoise", lambda *a, control=None, **k: seen.append(control) or denoise(*a, **k))
    latents(parts, Control(net=net(), hint=hint(), start_percent=start, end_percent=end))
    assert (len(seen), sum(each is not None for each in seen)) == (4, expected)


def test_hints_of_another_number_of_images(parts: Parts) -> None:
    with pytest.raises(ValueError, match="3 hints, 2 images"):
        latents(parts, Control(net=net(), hint=hint(3)))


def test_a_net_for_another_stage_c(parts: Parts) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="made for a Stage C of width 24; this one's is 16"):
        latents(parts, Control(net=net(width=24), hint=hint()))
