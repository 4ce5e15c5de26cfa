"""The cache across steps in a MODEL: what it skips, what it says, and what it works with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs
from cascade.diffusion import Cache, Guidance, SamplingSettings
from cascade.pipelines import StagePlan
from cascade.pipelines.stages import sample_stage_c
from tests.nodes import networks
from tests.nodes.graphs import LoadedGraph, sampled
from tests.nodes.model_pairs import conditioning, native, ours, sample
from tests.nodes.node_calls import NEGATIVE, POSITIVE, model, stage_b, stage_c
from tests.nodes.test_controlnet import applied, control, edges, hint
from tests.nodes.test_presets import put
from tests.support import relative_error

OFF = {"inner_every": 1, "threshold": 0.0, "cfg_every": 1, "start_percent": 0.0, "end_percent": 1.0}
CONDS = conditioning(), conditioning(seed=2)


def cached(host: Any, patcher: Any, **changes: Any) -> Any:
    return host.call("CascadeCache", model=patcher, **{**OFF, **changes})[0]


@pytest.fixture
def said(host: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(host.pack("nodes.host.checks"), "report", found.append)
    return found


@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_off_is_the_plain_run(host: Any, kind: str, said: list[str]) -> None:
    plain = sample(ours(host, kind), kind, *CONDS)
    assert torch.equal(sample(cached(host, ours(host, kind)), kind, *CONDS), plain)
    assert said == ["Used again: nothing"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inner_every": 2}, "Used again: the inner levels in 3 of 6 calls"),
        ({"inner_every": 2, "start_percent": 0.5}, "Used again: the inner levels in 2 of 6 calls"),
        ({"cfg_every": 3}, "Used again: the prediction without the prompt in 4 of 6 steps"),
        ({"inner_every": 6, "threshold": 1e-9}, "Used again: the inner levels in 0 of 6 calls"),
    ],
)
def test_it_says_what_it_skipped(host: Any, said: list[str], changes: dict[str, Any], words: str) -> None:
    made = stage_c(host, steps=6, model=cached(host, model(host, "stage_c"), **changes))
    assert said == [words]
    assert (relative_error(made, stage_c(host, steps=6)) == 0) is ("0 of" in words)


@pytest.mark.parametrize("cache", [Cache(inner_every=2), Cache(cfg_every=2), Cache(inner_every=3, cfg_every=2)])
def test_it_is_the_librarys(host: Any, cache: Cache) -> None:
    net = networks.network("stage_c")
    plan = StagePlan(
        stage="stage_c",
        size=(16, 5, 6),
        seeds=[7],
        settings=SamplingSettings(steps=6, guidance=Guidance(cfg=4.0), shift=2.0, cache=cache),
        cond=StageCInputs.without_image(POSITIVE, networks.IMAGE),
        uncond=StageCInputs.without_image(NEGATIVE, networks.IMAGE),
    )
    changes = {"inner_every": cache.inner_every, "cfg_every": cache.cfg_every}
    found = stage_c(host, steps=6, model=cached(host, model(host, "stage_c"), **changes))
    assert relative_error(found, sample_stage_c(net, plan)) < 1e-3


def test_a_second_run_starts_afresh(host: Any) -> None:
    patcher = cached(host, model(host, "stage_c"), inner_every=100, cfg_every=100)
    first = stage_c(host, steps=4, model=patcher)
    assert torch.equal(stage_c(host, steps=4, model=patcher), first)


def test_nodes_in_a_row_do_not_add_up(host: Any, said: list[str]) -> None:
    patcher = cached(host, cached(host, model(host, "stage_c"), inner_every=2), cfg_every=2)
    stage_c(host, steps=4, model=patcher)
    assert said == ["Used again: the prediction without the prompt in 2 of 4 steps"]


def test_loras_act_with_it(host: Any) -> None:
    """A LoRA after the cache and before it."""
    patcher = model(host, "stage_c")
    name = "diffusion_model.clf.1.weight"
    patch = {name: (networks.random(*patcher.model.state_dict()[name].shape) * 0.1,)}

    def patched(given: Any) -> Any:
        made = given.clone()
        made.add_patches(patch)
        return made

    results = [
        stage_c(host, model=cached(host, patched(patcher), inner_every=2)),
        stage_c(host, model=patched(cached(host, patcher, inner_every=2))),
    ]
    assert torch.equal(*results)
    assert relative_error(results[0], stage_c(host, model=cached(host, patcher, inner_every=2))) > 1e-3


@pytest.mark.parametrize("changes", [{"inner_every": 2}, {"cfg_every": 2}])
def test_a_controlnet_acts_with_it(host: Any, changes: dict[str, Any], said: list[str]) -> None:
    """Its residuals reach the steps that use work again: with nothing to use again, the run is the plain one."""
    conds, patcher = applied(host, control(host, "small"), hint("small")), ours(host, "stage_c")
    plain = sample(patcher, "stage_c", *conds, steps=4)
    found = sample(cached(host, patcher, **changes), "stage_c", *conds, steps=4)
    assert "in 2 of 4" in said[0]
    without = sample(cached(host, patcher, **changes), "stage_c", *CONDS, steps=4)
    assert relative_error(found, without) > 1e-2
    assert 0 < relative_error(found, plain) < relative_error(without, plain)
    late = cached(host, patcher, **changes, start_percent=1.0)
    assert torch.equal(sample(late, "stage_c", *conds, steps=4), plain)


def test_previews_come_with_it(host: Any, progress: list[Any]) -> None:
    graph = sampled("auto")
    [sampler] = (node["inputs"] for node in graph.prompt.values() if node["class_type"] == "KSampler")
    sampler["model"] = graph("CascadeCache", model=sampler["model"], **OFF | {"inner_every": 2})[0]
    host.run(graph, fresh=True, previews="auto")
    assert [(value, total) for value, total, preview in progress if preview] == [(step, 4) for step in (1, 2, 3, 4)]


def test_lora_controlnet_cache_and_previews_at_once(host: Any, progress: list[Any], said: list[str]) -> None:
    parts, (lora, _) = LoadedGraph(), put(host, "stage_c")
    control(host, "canny")
    graph, half = parts.graph, OFF | {"inner_every": 2, "cfg_every": 2}
    changed = graph("CascadeLoadLora", lora_name=lora, model=parts.model, strength_model=10.0, strength_clip=1.0)
    conds = graph(
        "CascadeApplyControlNet",
        positive=parts.text[0],
        negative=parts.text[1],
        control_net=graph("CascadeLoadControlNet", control_net_name="canny.safetensors", blocks=""),
        image=edges(graph, graph("LoadImage", image="stable_cascade_star.png")),
        strength=0.1,
        start_percent=0.0,
        end_percent=1.0,
        apply_to="positive and negative",
    )
    both = {"steps": 4, "positive": conds[0], "negative": conds[1]}
    cache = graph("CascadeCache", model=changed, **half)
    runs = {
        "all": parts.cascade(model=cache, **both),
        "without_cache": parts.cascade(model=changed, **both),
        "without_lora": parts.cascade(model=graph("CascadeCache", model=parts.model, **half), **both),
        "without_control": parts.cascade(model=cache, steps=4),
    }
    found = host.run(graph, previews="latent2rgb", **runs)
    whole, *others = (getattr(found, name)["samples"] for name in runs)
    changes = {name: relative_error(other, whole) for name, other in zip(list(runs)[1:], others, strict=True)}
    assert [name for name, change in changes.items() if change < 1e-4] == [], changes
    assert len([preview for *_, preview in progress if preview]) == 4 * len(runs)
    assert len(said) == 3
    assert all("2 of 4 calls" in words and "2 of 4 steps" in words for words in said)


def test_other_guidance_is_computed_in_full(host: Any, said: list[str]) -> None:
    """PerturbedAttentionGuidance calls the changed network by itself, with the same prompt."""
    patcher = model(host, "stage_c")
    [perturbed] = host.call("PerturbedAttentionGuidance", model=patcher, scale=3.0)
    [both] = host.call("PerturbedAttentionGuidance", model=cached(host, patcher, cfg_every=100), scale=3.0)
    plain, found = (sample(each, "stage_c", *CONDS, steps=4) for each in (perturbed, both))
    assert relative_error(found, plain) > 0
    assert said == ["Used again: the prediction without the prompt in 3 of 4 steps"]
    calls: list[Tensor] = []
    net = patcher.model.diffusion_model
    denoise = net.denoise
    net.denoise = lambda *a, **k: calls.append(k["around_inner"]) or denoise(*a, **k)
    try:
        [both] = host.call("PerturbedAttentionGuidance", model=cached(host, patcher, inner_every=2), scale=3.0)
        sample(both, "stage_c", *CONDS, steps=4)
    finally:
        del net.denoise
    assert [around is not None for around in calls] == [True, False] * 4


def test_tiles_keep_nothing_of_the_inner_levels(host: Any) -> None:
    """The tiles of a step have the same conditions, and other contents."""
    small = networks.random(1, 16, 12, 12)
    options = {"tiling": "always", "tile_size": 256, "overlap": 128, "steps": 2}
    plain = stage_b(host, small, **options)
    assert torch.equal(
        stage_b(host, small, model=cached(host, model(host, "stage_b"), inner_every=2), **options), plain
    )


def test_another_packs_model_is_refused(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match="was loaded by another node"):
        cached(host, native("stage_c"))
