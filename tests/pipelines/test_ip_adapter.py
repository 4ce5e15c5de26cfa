"""IP-Adapters in whole runs: what stays exactly the same, what changes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.checkpoints import inspect_file, load_model, save_model
from cascade.editing import BLOCK_WEIGHTS, box_mask
from cascade.errors import IncompatibleCheckpoint, InvalidSettings, MissingPart, UnknownCheckpoint
from cascade.models import Level, StageC, StageCConfig, initialize
from cascade.pipelines import IPAdapterImages, Parts, RegionalPrompt, StyleReference, generate
from tests.pipelines.test_style import FEW, IMAGE, OTHER
from tests.small import ip_adapter, small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(small_cascade())


def shown(images: Tensor = IMAGE, **options: Any) -> IPAdapterImages:
    return IPAdapterImages(**{"adapter": ip_adapter(), "images": images, **options})


def made(parts: Parts, *images: IPAdapterImages, seeds: tuple[int, ...] = (5,), **options: Any) -> Tensor:
    prompts = ["a red circle"] * len(seeds)
    return generate(parts, prompts, seeds=seeds, settings=FEW, ip_adapters=images, **options).stage_c


def test_a_weight_of_zero_is_the_plain_run_bit_for_bit(parts: Parts) -> None:
    assert torch.equal(made(parts, shown(weight=0.0)), made(parts))
    assert torch.equal(made(parts, shown(), shown(OTHER, weight=0.0)), made(parts, shown()))


def test_image_weight_part_blocks_and_mask_each_make_a_difference(parts: Parts) -> None:
    mask = box_mask((0, 0, 0.5, 1))
    found = [made(parts)]
    for options in (
        {},
        {"weight": 0.5},
        {"end_percent": 0.5},
        {"blocks": BLOCK_WEIGHTS["composition"]},
        {"blocks": BLOCK_WEIGHTS["style"]},
        {"mask": mask},
    ):
        found.append(made(parts, shown(**options)))
    found += [made(parts, shown(OTHER)), made(parts, shown(), shown(OTHER))]
    found.append(made(parts, shown(torch.cat([IMAGE, OTHER]))))
    for i, one in enumerate(found):
        assert all(relative_error(one, other) > 1e-5 for other in found[:i])


def test_an_image_is_the_same_alone_and_in_a_batch(parts: Parts) -> None:
    both = made(parts, shown(), seeds=(5, 6))
    assert relative_error(both[1:], made(parts, shown(), seeds=(6,))) < 1e-4


def test_with_regions_and_a_shared_style(parts: Parts) -> None:
    region = {"regions": [RegionalPrompt(box_mask((0, 0, 0.5, 1)), "a star")]}
    for options in (region, {"style_aligned": 1.0, "seeds": (5, 6)}):
        without, both = (made(parts, *images, **options) for images in ((), (shown(),)))
        assert relative_error(both, without) > 1e-4
        assert torch.equal(made(parts, shown(weight=0.0), **options), without)


def test_what_it_needs(parts: Parts) -> None:
    without = Parts({kind: net for kind, net in parts.sources.items() if kind != "image_encoder"})
    with pytest.raises(MissingPart, match="image_encoder"):
        made(without, shown())
    with pytest.raises(InvalidSettings, match="use one of them"):
        made(parts, shown(), style=StyleReference(image=IMAGE))


def test_an_adapter_of_another_stage_c_or_encoder(parts: Parts) -> None:
    config = StageCConfig(condition_channels=16, levels=(Level(32, 2, 1), Level(32, 2, 2)))
    other = ip_adapter(initialize(StageC(config)))
    match = r"trained for a Stage C of 6 attention blocks, 32 wide; this one has 4 attention blocks, 16 wide"
    with pytest.raises(IncompatibleCheckpoint, match=match):
        made(parts, shown(adapter=other))
    with pytest.raises(IncompatibleCheckpoint, match="image encoder 24 channels wide; this one is 16 wide"):
        made(parts, shown(adapter=ip_adapter(encoder=24)))


def test_a_file_of_one(tmp_path: Path) -> None:
    adapter = ip_adapter()
    save_model(adapter, tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors", part="ip_adapter")
    assert loaded.config == adapter.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in adapter.state_dict().items())
    found = inspect_file(tmp_path / "a.safetensors")
    assert (found.kind, found.folder) == ("ip_adapter", "model_patches")


def test_files_that_are_none(tmp_path: Path) -> None:
    foreign = {"image_proj.proj.weight": torch.zeros(2, 2), "ip_adapter.1.to_k_ip.weight": torch.zeros(2, 2)}
    with pytest.raises(UnknownCheckpoint, match="this is an IP-Adapter of Stable Diffusion or another model"):
        load_model(foreign, part="ip_adapter")
    save_model(small_cascade()["stage_c"], tmp_path / "c.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="Wanted here: IP-Adapter"):
        load_model(tmp_path / "c.safetensors", part="ip_adapter")
