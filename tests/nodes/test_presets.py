"""The node Preset: both samplers at once, with LoRAs for a few steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade import tiny
from cascade.adapters import Applied, Lora, LowRank, attach, save_lora
from cascade.conditioning import StageBInputs, StageCInputs
from cascade.pipelines import PRESETS, Parts, Settings, generate
from tests.nodes import networks
from tests.nodes.graphs import OPTIONS, SETTINGS
from tests.nodes.hosting import Graph
from tests.nodes.image_checks import needs_tiny
from tests.nodes.networks import library_sample, random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, model, stage_b, stage_c
from tests.support import relative_error

TINY = "tiny cascade (included)"
LAYER = "down_blocks.0.0.channelwise.4.weight"


def lora(kind: str) -> Lora:
    [weight] = [value for name, value in networks.network(kind).state_dict().items() if name == LAYER]
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    return Lora({kind: {LAYER: LowRank(down, up, 1.0)}})


def put(host: Any, kind: str) -> tuple[str, Lora]:
    folder, made = host.models / "loras", lora(kind)
    folder.mkdir(exist_ok=True)
    save_lora(made, folder / f"few_{kind}.safetensors", format="cascade")
    return f"few_{kind}.safetensors", made


def chosen(host: Any, preset: str, **given: Any) -> Any:
    inputs = {"lora_stage_c": TINY, "lora_stage_b": TINY, **given}
    return host.call(
        "CascadePreset", preset=preset, stage_c=model(host, "stage_c"), stage_b=model(host, "stage_b"), **inputs
    )


def library(kind: str, inputs: Any, size: tuple[int, ...], preset: str) -> Tensor:
    return library_sample(kind, inputs, NEGATIVE, size=size, seeds=[7], settings=PRESETS[preset].of(kind))


INPUTS = StageCInputs.without_image(POSITIVE, networks.IMAGE)


@pytest.mark.parametrize("preset", ["released", "fast"])
def test_both_samplers_take_the_presets_settings(host: Any, preset: str) -> None:
    one, other, options = chosen(host, preset)
    assert (one, other) == (model(host, "stage_c"), model(host, "stage_b"))
    # The samplers' own 4 and 3 steps are not used.
    assert relative_error(stage_c(host, options=options), library("stage_c", INPUTS, (16, 5, 6), preset)) < 1e-3
    small = random(1, 16, 5, 6)
    expected = library("stage_b", StageBInputs(small, POSITIVE.pooled), (4, 54, 64), preset)
    scale = networks.CONFIGS["stage_a"].scale_factor
    assert relative_error(stage_b(host, small, options=options), expected * scale) < 1e-3


def test_turbo_gives_both_models_their_lora(host: Any) -> None:
    (name_c, lora_c), (name_b, lora_b) = put(host, "stage_c"), put(host, "stage_b")
    one, other, options = chosen(host, "turbo", lora_stage_c=name_c, lora_stage_b=name_b)
    with attach([Applied(lora_c)], stage_c=networks.network("stage_c")):
        expected = library("stage_c", INPUTS, (16, 5, 6), "turbo")
    assert relative_error(stage_c(host, model=one, options=options), expected) < 1e-3
    assert relative_error(stage_c(host, options=options), expected) > 1e-2
    small = random(1, 16, 5, 6)
    with attach([Applied(lora_b)], stage_b=networks.network("stage_b")):
        expected = library("stage_b", StageBInputs(small, POSITIVE.pooled), (4, 54, 64), "turbo")
    expected = expected * networks.CONFIGS["stage_a"].scale_factor
    assert relative_error(stage_b(host, small, model=other, options=options), expected) < 1e-3


def test_load_lora_takes_one_of_stage_b(host: Any) -> None:
    name, made = put(host, "stage_b")
    loaded, _, report = host.call(
        "CascadeLoadLora", lora_name=name, model=model(host, "stage_b"), strength_model=0.5, strength_clip=1.0
    )
    assert "Stage B: 1 of 1 tensors" in report
    small = random(1, 16, 5, 6)
    settings = {"steps": 2, "cfg": 1.0, "sampler_name": "ddim", "shift": 1.0}
    with attach([Applied(made, stage_b=0.5)], stage_b=networks.network("stage_b")):
        expected = library("stage_b", StageBInputs(small, POSITIVE.pooled), (4, 54, 64), "turbo")
    expected = expected * networks.CONFIGS["stage_a"].scale_factor
    assert relative_error(stage_b(host, small, model=loaded, **settings), expected) < 1e-3
    with pytest.raises(host.errors.CascadeError, match="This takes a Stage B model"):
        host.call(
            "CascadeLoadLora", lora_name=name, model=model(host, "stage_c"), strength_model=1.0, strength_clip=1.0
        )


def test_turbo_says_that_a_lora_is_missing(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match=r"trained to need few steps with this Stage C.*lora_stage_c"):
        chosen(host, "turbo")
    name, _ = put(host, "stage_c")
    with pytest.raises(host.errors.CascadeError, match="does not change Stage B"):
        chosen(host, "turbo", lora_stage_c=name, lora_stage_b=name)


def test_other_options_stay(host: Any) -> None:
    tiles = host.call("CascadeSamplingOptions", **{**OPTIONS, "tile_size": 256, "overlap": 64})[0]
    options = chosen(host, "fast", options=tiles)[2]
    assert options.tiles.tile_size == 256
    assert replace(options, preset=None) == tiles


@needs_tiny
def test_turbo_of_the_tiny_cascade_is_that_of_the_library(host: Any) -> None:
    caption, preset = "a large red circle on a blue background, left", PRESETS["turbo"]
    settings = Settings(width=256, height=256, stage_c=preset.stage_c, stage_b=preset.stage_b)
    expected = generate(Parts(tiny.parts(), loras=tiny.turbo()), [caption], seeds=[3], settings=settings).images
    graph = Graph()
    parts = graph("CascadeLoadCheckpoint", ckpt_name=TINY, second_ckpt_name="auto", weight_dtype="default")
    few = graph(
        "CascadePreset", preset="turbo", stage_c=parts[0], stage_b=parts[1], lora_stage_c=TINY, lora_stage_b=TINY
    )
    text = graph("CascadeTextEncode", clip=parts[2], positive=caption, negative="")
    latent = graph("CascadeEmptyLatent", preset="256 x 256 (tiny cascade)", width=256, height=256, batch_size=1)
    given = {"positive": text[0], "negative": text[1], "seed": 3, "steps": 20, "cfg": 4.0, "shift": 2.0, **SETTINGS}
    small = graph("CascadeSampleStageC", model=few[0], latent_image=latent[0], options=few[2], **given)
    large = graph("CascadeSampleStageB", model=few[1], stage_c=small, options=few[2], **given)
    image = graph("CascadeDecode", samples=large, vae=parts[3], tiling="auto", tile_size=1024)
    found = host.run(graph, image=image).image.movedim(-1, 1)
    assert float((found - expected).abs().mean()) < 0.01
