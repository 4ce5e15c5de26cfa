"""Images inverted, kept in files, and edited by another prompt, with random networks."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.checkpoints.saving import save_tensors
from cascade.diffusion import Guidance
from cascade.editing import EditStrength
from cascade.errors import BrokenCheckpoint, IncompatibleCheckpoint, InvalidSettings, UnknownCheckpoint
from cascade.images import as_rgb, fit
from cascade.pipelines import (
    Generated,
    Inversion,
    Parts,
    SamplingSettings,
    Settings,
    StagePlan,
    edit_images,
    encode_prompts,
    invert_images,
)
from cascade.pipelines.edit_images import made_again
from cascade.pipelines.inversion import METADATA, fingerprint
from tests.small import small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric

SETTINGS = Settings(
    width=96,
    height=96,
    stage_c=SamplingSettings(steps=3, shift=2.0),
    stage_b=SamplingSettings(steps=2, guidance=Guidance(cfg=1.1)),
)
PROMPT = "a cat on a sofa"
IMAGES = torch.rand(2, 3, 100, 90, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(small_cascade())


@pytest.fixture(scope="module")
def inversion(parts: Parts) -> Inversion:
    return invert_images(parts, IMAGES, PROMPT, seeds=[1, 2], settings=SETTINGS)


def edit(parts: Parts, inversion: Inversion, to: str = "a dog on a sofa", **changes: Any) -> Generated:
    return edit_images(parts, IMAGES, inversion, to, **{"seeds": [1, 2], "settings": SETTINGS, **changes})


def test_the_same_prompt_gives_the_latents_of_the_image(parts: Parts, inversion: Inversion):
    assert relative_error(made_again(parts, inversion, SETTINGS), inversion.latents) < 1e-4


@pytest.mark.parametrize("skip", [0, 2])
def test_another_prompt_changes_the_image(parts: Parts, inversion: Inversion, skip: int):
    result = edit(parts, inversion, skip=skip, strength=EditStrength(blend=0))
    assert relative_error(result.stage_c, inversion.latents) > 1e-3
    assert result.images.shape == (2, 3, 96, 96)


def test_nothing_changes_where_the_changed_words_are_not_seen(parts: Parts, inversion: Inversion):
    result = edit(parts, inversion, strength=EditStrength(blend=0.9))
    source = fit(as_rgb(IMAGES), 96, 96)
    same = (result.images == source).all(1)
    assert 0 < same.float().mean() < 1


def test_where_nothing_is_seen_enough_all_stays(parts: Parts, inversion: Inversion):
    result = edit(parts, inversion, strength=EditStrength(blend=1.0))
    assert torch.equal(result.images, fit(as_rgb(IMAGES), 96, 96))


def test_an_image_is_the_same_alone(parts: Parts, inversion: Inversion):
    alone = invert_images(parts, IMAGES[1:], PROMPT, seeds=[2], settings=SETTINGS)
    assert relative_error(alone.noise.added, inversion.of([1]).noise.added) < 1e-4


def test_outside_of_the_mask_the_image_stays_as_it_is(parts: Parts, inversion: Inversion):
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., :48] = 1
    result = edit(parts, inversion, mask=mask, strength=EditStrength(blend=0))
    source = fit(as_rgb(IMAGES), 96, 96)
    assert torch.equal(result.images[..., 48:], source[..., 48:])
    assert not torch.equal(result.images[..., :48], source[..., :48])


def test_a_file_has_all_of_it(parts: Parts, inversion: Inversion, tmp_path: Path):
    inversion.save(tmp_path / "cat.safetensors")
    loaded = Inversion.load(tmp_path / "cat.safetensors")
    assert loaded.made == inversion.made
    first, second = (edit(parts, each).stage_c for each in (inversion, loaded))
    assert torch.equal(first, second)


def plan(parts: Parts, **changes: Any) -> StagePlan[Any]:
    text = parts.use("text_encoder", lambda net: encode_prompts(net, ["a cat"])["a cat"])
    given = {"size": SETTINGS.sizes.stage_c, "seeds": [1, 2], "settings": SETTINGS.stage_c, **changes}
    return StagePlan(stage="stage_c", cond=text, uncond=text, **given)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"settings": replace(SETTINGS.stage_c, steps=4)}, r"steps 3.* has 4: use the same, or invert"),
        ({"settings": replace(SETTINGS.stage_c, shift=1.0)}, r"shift 2.* has 1"),
        ({"settings": replace(SETTINGS.stage_c, sampler_name="ddim")}, r"sampler_name ddpm.* has ddim"),
        ({"size": (16, 4, 5)}, r"height x width 3 x 3.* has 4 x 5"),
        ({"seeds": [1, 2, 3]}, r"2 images, and the edit 3"),
    ],
    ids=["steps", "shift", "sampler", "size", "images"],
)
def test_a_run_of_another_kind_is_refused(parts: Parts, inversion: Inversion, changes: dict[str, Any], found: str):
    with pytest.raises(InvalidSettings, match=found):
        inversion.plan(plan(parts, **changes), 0)


@pytest.mark.parametrize("skip", [-1, 3])
def test_at_least_one_step_is_left(parts: Parts, inversion: Inversion, skip: int):
    with pytest.raises(InvalidSettings, match=f"can skip 0 to 2, not {skip}"):
        inversion.plan(plan(parts), skip)


def test_another_stage_c_is_refused_before_sampling(parts: Parts, inversion: Inversion):
    other: Any = deepcopy(small_cascade()["stage_c"])
    for name, parameter in other.named_parameters():
        if name.endswith("gamma"):
            parameter.data = torch.full_like(parameter, -1)
    assert fingerprint(other) != inversion.made.model
    steps: list[int] = []
    with pytest.raises(IncompatibleCheckpoint, match="another Stage C"):
        edit(
            Parts({**parts.sources, "stage_c": other}),
            inversion,
            on_progress=lambda _stage, i, _n, _x0: steps.append(i),
        )
    assert not steps


def test_the_same_stage_c_in_another_type_is_not(inversion: Inversion):
    same: Any = deepcopy(small_cascade()["stage_c"])
    inversion.check_model(same.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("stage_c", "found"),
    [
        (replace(SETTINGS.stage_c, sampler_name="dpmpp_2m"), "sampler ddpm, not dpmpp_2m"),
        (replace(SETTINGS.stage_c, start_percent=0.5), "whole run"),
    ],
)
def test_only_a_whole_run_of_ddpm_is_inverted(stage_c: SamplingSettings, found: str):
    with pytest.raises(InvalidSettings, match=found):
        invert_images(Parts({}), IMAGES, PROMPT, seeds=[1, 2], settings=replace(SETTINGS, stage_c=stage_c))


def test_images_and_seeds_belong_together(inversion: Inversion):
    with pytest.raises(ValueError, match="2 images, 1 seeds"):
        invert_images(Parts({}), IMAGES, PROMPT, seeds=[1])
    with pytest.raises(ValueError, match="1 seeds"):
        edit_images(Parts({}), IMAGES, inversion, "a dog", seeds=[1])


def test_files_that_are_none_of_ours_are_refused(inversion: Inversion, tmp_path: Path):
    path = tmp_path / "file.safetensors"
    tensors = {"latents": inversion.latents, "starts": inversion.noise.starts, "added": inversion.noise.added}
    save_tensors(tensors, path, {})
    with pytest.raises(UnknownCheckpoint, match="no inversion"):
        Inversion.load(path)
    for metadata in ("[]", "{", '{"steps": 3}', "9" * 5000):
        save_tensors(tensors, path, {METADATA: metadata})
        with pytest.raises(BrokenCheckpoint, match="made with cannot be read"):
            Inversion.load(path)
    inversion.save(path)
    about = Inversion.load(path).made
    broken = replace(inversion, noise=inversion.noise.skipping(1))
    broken.save(path)
    with pytest.raises(BrokenCheckpoint, match=f"{about.steps} steps whose tensors"):
        Inversion.load(path)
    replace(inversion, latents=inversion.latents * float("nan")).save(path)
    with pytest.raises(BrokenCheckpoint, match="NaN"):
        Inversion.load(path)
