"""Our MODEL beside the host's own with the same weights, and what ours puts right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.ldm.cascade.stage_a
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from torch import Tensor

from tests.nodes import networks
from tests.nodes.model_pairs import SHAPES, TEXT, conditioning, native, ours, sample
from tests.nodes.networks import random
from tests.support import Waits, relative_error

KINDS = ["stage_c", "stage_b"]


def prior(kind: str, seed: int = 9) -> dict[str, Tensor]:
    return {"stable_cascade_prior": random(1, 16, 3, 2, seed=seed)} if kind == "stage_b" else {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["ddpm", "euler", "dpmpp_2m"])
def test_the_same_as_the_hosts_own(host: Any, kind: str, sampler: str) -> None:
    conds = conditioning(**prior(kind)), conditioning(seed=2)
    expected = sample(native(kind), kind, *conds, sampler_name=sampler)
    assert relative_error(sample(ours(host, kind), kind, *conds, sampler_name=sampler), expected) < 1e-4


def test_a_whole_graph_is_the_hosts_own(host: Any) -> None:
    """Stage C, Stage B that reads its latent, Stage A: the image of the host's own networks."""
    state = networks.network("stage_a").state_dict()
    config = networks.CONFIGS["stage_a"]
    theirs = comfy.ldm.cascade.stage_a.StageA(
        bottleneck_blocks=config.bottleneck_blocks, c_hidden=config.width, codebook_size=config.codebook_size
    )
    theirs.load_state_dict(state)
    load_stage_a = host.pack("nodes.host.autoencoders").load_stage_a
    vae = load_stage_a(host.models / "vae" / networks.file_name("stage_a"), "fp32")

    def large(stage_c: Any, stage_b: Any) -> Tensor:
        text, nothing = conditioning(), conditioning(seed=2)
        small = sample(stage_c, "stage_c", text, nothing, shape=(1, 16, 5, 6))
        return sample(
            stage_b, "stage_b", conditioning(stable_cascade_prior=small), nothing, cfg=1.1, shape=(1, 4, 54, 64)
        )

    with torch.inference_mode():
        expected = theirs.decode(large(native("stage_c"), native("stage_b"))).clamp(0, 1).movedim(1, -1)
        found = vae.decode(large(ours(host, "stage_c"), ours(host, "stage_b")))
    assert found.shape == (1, 216, 256, 3)
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_is_the_same_as_the_hosts_own(host: Any, kind: str) -> None:
    models = [native(kind).model, ours(host, kind).model]
    x, sigma = random(*SHAPES[kind]), torch.tensor([3.0, 0.7])
    conds = {
        "clip_text": random(2, 9, TEXT),
        "clip_text_pooled": random(2, 1, TEXT),
        "clip_img": random(2, 3, networks.IMAGE),
    }
    if kind == "stage_b":
        conds = {"effnet": random(2, 16, 12, 10), "clip": random(2, 1, TEXT)}
    expected, found = (model.apply_model(x, sigma, sca=torch.tensor([0.3, 0.0]), **conds) for model in models)
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_weights_keep_the_hosts_names(host: Any, kind: str) -> None:
    assert set(ours(host, kind).model_state_dict()) == set(native(kind).model_state_dict())


def test_text_of_unequal_length_changes_nothing(host: Any) -> None:
    """Where both are sampled in one call, neither is repeated to the length of the other."""
    model = ours(host, "stage_c")
    positive, negative = conditioning(length=14), conditioning(length=7, seed=2)
    guided = sample(model, "stage_c", positive, negative, steps=1, sampler_name="euler")
    alone = [
        sample(model, "stage_c", each, [], cfg=1.0, steps=1, sampler_name="euler") for each in (positive, negative)
    ]
    assert relative_error(guided, alone[1] + 4 * (alone[0] - alone[1])) < 1e-4


def test_an_area_of_stage_b_gets_its_own_part_of_stage_c(host: Any) -> None:
    model = ours(host, "stage_b")
    spatial = host.pack("nodes.host.models").CondSpatial
    whole = random(1, 16, 12, 10)
    cropped = spatial(whole, (24, 20)).process_cond(2, area=[8, 10, 4, 6]).cond
    assert torch.equal(cropped, whole[..., 2:6, 3:8].repeat(2, 1, 1, 1))
    everything = conditioning(**prior("stage_b"))
    left = [[c[0], {**c[1], "area": (24, 10, 0, 0)}] for c in everything]
    right = [[c[0], {**c[1], "area": (24, 10, 0, 10)}] for c in everything]
    halves = sample(model, "stage_b", left + right, conditioning(seed=2), steps=1)
    other = conditioning(**prior("stage_b", seed=10))
    changed = sample(
        model, "stage_b", [[c[0], {**c[1], "area": (24, 10, 0, 0)}] for c in other] + right, [], steps=1, cfg=1
    )
    same = sample(model, "stage_b", left + right, [], steps=1, cfg=1)
    assert torch.equal(changed[..., 10:], same[..., 10:])
    assert not torch.equal(changed[..., :10], same[..., :10])
    assert relative_error(halves, same) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_extra_timestep_conditions_are_heard(host: Any, kind: str) -> None:
    model = ours(host, kind)
    plain, changed = (
        sample(model, kind, conditioning(**prior(kind), **extras), [], cfg=1.0, steps=1)
        for extras in ({}, {"stable_cascade_sca": 0.5})
    )
    assert relative_error(changed, plain) > 1e-3


def test_conditions_are_computed_once_a_run_and_then_forgotten(host: Any) -> None:
    model = ours(host, "stage_c", dtype="fp32")
    net = model.model.diffusion_model
    calls: list[int] = []
    conditions = net.conditions
    net.conditions = lambda **inputs: calls.append(1) or conditions(**inputs)
    sample(model, "stage_c", conditioning(), conditioning(seed=2), steps=5)
    assert len(calls) == 1
    assert net.cache.entries == []
    sample(model, "stage_c", conditioning(length=14), conditioning(seed=2), steps=5)
    assert len(calls) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_no_call_asks_for_a_number(host: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graphics card would have to finish its work first. The host's own samplers do ask, between the calls."""
    model, waits = ours(host, kind), Waits()
    apply = type(model.model)._apply_model

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        with waits:
            return apply(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "_apply_model", watched)
    conds = conditioning(length=14, **prior(kind)), conditioning(seed=2)
    sample(model, kind, *conds)
    sample(model, kind, conds[0] + conditioning(length=14, seed=3, **prior(kind)), conds[1])
    assert waits.calls > 100
    assert waits.found == []


def test_conditions_of_a_patched_model_are_its_own(host: Any) -> None:
    model = ours(host, "stage_c")
    conds = conditioning(), conditioning(seed=2)
    before = sample(model, "stage_c", *conds)
    patched = model.clone()
    name = "diffusion_model.down_blocks.0.2.kv_mapper.1.weight"
    patched.add_patches({name: (random(64, 32) * 0.5,)})
    changed = sample(patched, "stage_c", *conds)
    assert relative_error(changed, before) > 1e-3
    assert torch.equal(sample(model, "stage_c", *conds), before)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3fn"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_types_stay_close(host: Any, kind: str, dtype: str) -> None:
    conds = conditioning(**prior(kind)), conditioning(seed=2)
    expected = sample(ours(host, kind), kind, *conds, steps=1)
    model = ours(host, kind, dtype=dtype)
    assert {"bf16": "bfloat16", "fp16": "float16", "fp8_e4m3fn": "float8_e4m3fn"}[dtype] in str(model.model_dtype())
    found = sample(model, kind, *conds, steps=1)
    assert relative_error(found, expected) < (0.3 if dtype == "fp8_e4m3fn" else 0.03)


def test_a_conditioning_of_another_model_is_explained(host: Any) -> None:
    other = [[torch.zeros(1, 7, 768), {"pooled_output": torch.zeros(1, 768)}]]
    with pytest.raises(host.errors.CascadeError, match=r"reads text embeddings of width 24, the conditioning has 768"):
        sample(ours(host, "stage_c"), "stage_c", other, other)


def test_the_list_of_models_is_left_as_it_was(host: Any, tmp_path: Path) -> None:
    before = list(comfy.supported_models.models)
    ours.__wrapped__(host, "stage_b")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no")
    with pytest.raises(host.errors.BrokenCheckpoint, match="broken"):
        host.pack("nodes.host.models").load_stage("stage_b", broken)
    assert comfy.supported_models.models == before


def test_a_wrong_file_is_named(host: Any) -> None:
    path = host.models / "diffusion_models" / networks.file_name("stage_b")
    with pytest.raises(
        host.errors.IncompatibleCheckpoint, match=r"this is Stage B, custom.*diffusion_models.*Wanted here: Stage C"
    ):
        host.pack("nodes.host.models").load_stage("stage_c", path)
