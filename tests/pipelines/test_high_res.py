"""High-res guides in whole runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cascade.errors import IncompatibleCheckpoint, InvalidSettings, InvalidSize
from cascade.models import Features, HighResGuide, HighResGuideConfig, HighResGuides, initialize
from cascade.pipelines import (
    Control,
    Generated,
    HighRes,
    ImageToImage,
    Parts,
    SamplingSettings,
    Settings,
    Tiles,
    generate,
    memory,
)
from tests.pipelines.test_control import hint
from tests.pipelines.test_control import net as control_net
from tests.small import IMAGE, POOLED, TEXT, part, small_cascade
from tests.support import randomised, relative_error

pytestmark = pytest.mark.numeric

LARGE = Settings(
    width=192,
    height=128,
    stage_c=SamplingSettings(steps=4, guidance=Settings().stage_c.guidance, shift=2.0),
    stage_b=SamplingSettings(steps=1, guidance=Settings().stage_b.guidance, shift=1.0),
)
PROMPTS, SEEDS = ["a cat", "a dog"], [1, 2]
CONDITIONS = {"clip_text": TEXT, "clip_text_pooled": POOLED, "clip_img": IMAGE}
CONFIG = HighResGuideConfig(stage_c_width=16, width=8, heads=2, groups=4, timestep_channels=8)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(small_cascade())


@pytest.fixture(scope="module")
def high_res() -> HighRes:
    guides: Any = randomised(HighResGuides(CONFIG))
    for guide in (*guides.down, *guides.up):
        # At -2 and 0, where training begins, it would add next to nothing.
        guide.hr_norm.mapping.mapper.bias.zero_()
    return HighRes(guides=guides, resolution=64)


def made(parts: Parts, settings: Settings = LARGE, **options: Any) -> Generated:
    return generate(parts, PROMPTS, seeds=SEEDS, settings=settings, **options)


def test_guides_change_the_image_and_weight_0_is_the_plain_run(parts: Parts, high_res: HighRes) -> None:
    plain, guided = made(parts), made(parts, high_res=high_res)
    assert guided.stage_c.shape == plain.stage_c.shape
    assert relative_error(guided.stage_c, plain.stage_c) > 1e-2
    assert torch.equal(made(parts, high_res=replace(high_res, weight=0.0)).stage_c, plain.stage_c)


def test_new_guides_add_nothing(parts: Parts) -> None:
    guides = initialize(HighResGuides(CONFIG)).requires_grad_(False)
    found = made(parts, high_res=HighRes(guides=guides, resolution=64))  # type: ignore[arg-type]
    assert relative_error(found.stage_c, made(parts).stage_c) < 1e-5


def test_an_image_is_the_same_alone_and_in_a_batch(parts: Parts, high_res: HighRes) -> None:
    both = made(parts, high_res=high_res).stage_c
    alone = generate(parts, PROMPTS[1:], seeds=SEEDS[1:], settings=LARGE, high_res=high_res).stage_c
    assert relative_error(alone, both[1:]) < 1e-3


def test_features_are_enlarged_once_a_run(parts: Parts, high_res: HighRes, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    enlarged = HighResGuide.enlarged

    def counted(self: HighResGuide, feature: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        calls.append(size)
        return enlarged(self, feature, size)

    monkeypatch.setattr(HighResGuide, "enlarged", counted)
    generate(parts, PROMPTS[:1], seeds=SEEDS[:1], settings=LARGE, high_res=high_res)
    assert len(calls) == 4  # a guide at each of the four places, in four steps


def test_guides_act_in_a_part_of_the_run(parts: Parts, high_res: HighRes) -> None:
    whole = made(parts, high_res=high_res).stage_c
    half = made(parts, high_res=replace(high_res, end_percent=0.5)).stage_c
    nothing = made(parts, high_res=replace(high_res, start_percent=0.999)).stage_c
    assert relative_error(half, whole) > 1e-3
    assert torch.equal(nothing, made(parts).stage_c)


def test_both_passes_are_reported_as_one_run(parts: Parts, high_res: HighRes) -> None:
    seen: list[tuple[str, int, int, torch.Size]] = []
    made(parts, high_res=high_res, on_progress=lambda stage, i, n, x0: seen.append((stage, i, n, x0.shape)))
    stage_c = [each for each in seen if each[0] == "stage_c"]
    assert [(i, n) for _, i, n, _ in stage_c] == [(i, 8) for i in range(8)]
    first, second = stage_c[0][3], stage_c[-1][3]
    assert first[-2:] == (1, 2)  # 64 x sqrt(2 / 3) and 64 / sqrt(2 / 3), down to multiples of 32: 32 x 64 pixels
    assert second[-2:] == (3, 5)


def test_an_image_to_start_from_is_read_instead_of_a_first_pass(parts: Parts, high_res: HighRes) -> None:
    images = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    source = ImageToImage(images=images, strength=0.5)
    steps: list[int] = []
    guided = made(
        parts,
        high_res=high_res,
        source=source,
        on_progress=lambda stage, i, n, x0: steps.append(n) if stage == "stage_c" else None,
    )
    assert relative_error(guided.stage_c, made(parts, source=source).stage_c) > 1e-3
    assert set(steps) == {len(steps)}  # one pass
    mask = torch.zeros(1, 1, 128, 192)
    mask[..., :96] = 1
    kept = made(parts, high_res=high_res, source=replace(source, mask=mask)).images
    assert torch.equal(kept[..., 96:], images[..., 96:])


def test_controlnets_act_in_the_first_pass(parts: Parts, high_res: HighRes) -> None:
    control = Control(net=control_net(), hint=hint())
    both = made(parts, high_res=high_res, controls=[control]).stage_c
    assert relative_error(both, made(parts, high_res=high_res).stage_c) > 1e-3
    assert control.net.calls == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("size", "expected"), [((4096, 4096), (1024, 1024)), ((4096, 6144), (832, 1248)), ((2048, 6144), (576, 1760))]
)
def test_the_first_pass_has_about_a_megapixel_in_the_same_shape(
    high_res: HighRes, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert replace(high_res, resolution=1024).first_size(*size) == expected


def test_guides_of_another_stage_c_are_refused(parts: Parts, high_res: HighRes) -> None:
    for change, message in (({"stage_c_width": 24}, "width 24"), ({"levels": 3}, "3 levels")):
        other = randomised(HighResGuides(replace(CONFIG, **change)))
        with pytest.raises(IncompatibleCheckpoint, match=message):
            made(parts, high_res=replace(high_res, guides=other))


def test_features_of_another_stage_c_batch_or_size_are_refused(high_res: HighRes) -> None:
    net: Any = part("stage_c")
    conditions = {name: torch.rand(2, 1, size) for name, size in CONDITIONS.items()}

    def guided(*shape: int) -> torch.Tensor:
        features = Features(*((torch.rand(shape),) * 2,) * 2)
        return net(torch.rand(2, 16, 4, 4), torch.rand(2), **conditions, guides=high_res.guides, features=features)

    assert guided(2, 16, 2, 2).shape == (2, 16, 4, 4)
    for shape, message in (
        ((2, 24, 2, 2), "made for a Stage C of width 16, and the features are of one of width 24"),
        ((3, 16, 2, 2), "features are of 3 images, and 2 are sampled"),
        ((2, 16, 33, 32), "33 x 32 positions; a high-res guide reads at most 1024"),
    ):
        with pytest.raises(IncompatibleCheckpoint, match=message):
            guided(*shape)


def test_a_first_pass_that_is_too_large_is_refused(parts: Parts, high_res: HighRes) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="at most 1024"):
        made(parts, high_res=replace(high_res, resolution=1536), settings=replace(LARGE, width=1536, height=1536))


def test_settings_that_contradict_themselves_are_refused(parts: Parts, high_res: HighRes) -> None:
    with pytest.raises(InvalidSettings, match="enlarge"):
        made(parts, high_res=high_res, settings=replace(LARGE, enlarge=2.0))
    with pytest.raises(InvalidSettings, match="start_percent"):
        replace(high_res, start_percent=0.8, end_percent=0.2)


def test_a_size_beyond_memory_is_refused_before_sampling(
    parts: Parts, high_res: HighRes, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = replace(LARGE, width=2048, height=1024)
    steps: list[str] = []

    def limited(size: float, settings: Settings = large, **options: Any) -> Generated:
        monkeypatch.setattr(memory, "total_memory", lambda device: size)
        return made(parts, settings, on_progress=lambda stage, *_: steps.append(stage), **options)

    stage_c = memory.step_bytes(part("stage_c").config, (4, 16, 24, 48), 4)  # type: ignore[arg-type]
    ways: list[dict[str, Any]] = [{}, {"high_res": high_res}]
    for options in ways:
        with pytest.raises(InvalidSize, match=r"Stage C at 2048 x 1024 pixels and a batch of 2 .* About 1408 x 704"):
            limited(stage_c / memory.USABLE / 2, **options)
        assert steps == []
    with pytest.raises(InvalidSize, match=r"Stage B at 2048 x 1024 pixels .* or tiles of 1024 pixels"):
        limited(stage_c * 2)
    assert "stage_b" not in steps
    tiled = replace(large, tiles=Tiles(256, 64), stage_b=replace(large.stage_b, steps=1))
    assert limited(stage_c * 2, tiled).images.shape[-2:] == (1024, 2048)
