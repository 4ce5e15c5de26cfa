"""High-res guides on a MODEL: the library's result, any sampler, and what the nodes refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import comfy.model_management
import comfy.utils
import pytest
import torch
from torch import Tensor, nn

from cascade import models
from cascade.checkpoints import save_model
from cascade.conditioning import StageCInputs, TextEmbedding
from cascade.diffusion import Guidance, SamplingSettings
from cascade.models import HighResGuideConfig, HighResGuides
from cascade.pipelines import PRESETS, HighRes, StagePlan
from cascade.pipelines.sizes import latent_sizes
from cascade.pipelines.stages import features_of, sample_features, sample_stage_c
from tests.nodes import model_pairs, networks, test_controlnet
from tests.nodes.hosting import Graph
from tests.nodes.networks import file_name, random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, conditioning, model
from tests.support import relative_error

WIDTH = networks.CONFIGS["stage_c"].levels[0].width
CONFIG = HighResGuideConfig(stage_c_width=WIDTH, width=16, heads=2, groups=4, timestep_channels=8)
LARGE = (2, 16, 6, 8)
FIRST = 128
SETTINGS = {"seed": 7, "steps": 3, "cfg": 4.0, "sampler_name": "ddpm", "denoise": 1.0, "shift": 1.0}
ACTING = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}


@cache
def guides(config: HighResGuideConfig = CONFIG) -> HighResGuides:
    torch.manual_seed(3)
    net = models.initialize(HighResGuides(config))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval().requires_grad_(False)  # type: ignore[return-value]


@cache
def guide(host: Any, config: HighResGuideConfig = CONFIG) -> Any:
    path = host.models / "model_patches" / f"guides_{config.stage_c_width}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_model(guides(config), path)
    return host.call("CascadeLoadHighResGuide", guide_name=path.name)[0]


def conds() -> dict[str, Any]:
    return {"positive": conditioning(POSITIVE), "negative": conditioning(NEGATIVE)}


def two_passes(host: Any, **changes: Any) -> tuple[Tensor, Tensor]:
    given = {"model": model(host, "stage_c"), "guide": guide(host), "latent_image": {"samples": torch.zeros(LARGE)}}
    given = {**given, **conds(), **SETTINGS, **ACTING, "first_size": FIRST, **changes}
    return tuple(latent["samples"] for latent in host.call("CascadeSampleHighRes", **given))


def sampled(host: Any, **changes: Any) -> Tensor:
    given = {"model": model(host, "stage_c"), "latent_image": {"samples": torch.zeros(LARGE)}, **conds(), **SETTINGS}
    return host.call("CascadeSampleStageC", **{**given, **changes})[0]["samples"]


def applied(host: Any, small: Tensor, **changes: Any) -> Any:
    given = {"model": model(host, "stage_c"), "guide": guide(host), "positive": conditioning(POSITIVE), "seed": 7}
    return host.call("CascadeApplyHighResGuide", **{**given, "small_latent": {"samples": small}, **ACTING, **changes})[
        0
    ]


def plan(size: Any, **changes: Any) -> StagePlan[StageCInputs]:
    cond = StageCInputs.without_image(TextEmbedding.join([POSITIVE] * 2), networks.IMAGE)
    settings = SamplingSettings(steps=3, shift=1.0, guidance=Guidance(cfg=4.0))
    return StagePlan(
        stage="stage_c",
        size=size,
        seeds=[7, 8],
        settings=settings,
        cond=cond,
        uncond=cond.unconditional(NEGATIVE),
        **changes,
    )


def test_both_passes_are_the_librarys(host: Any) -> None:
    large, small = two_passes(host)
    high_res, net = HighRes(guides=guides(), resolution=FIRST), networks.network("stage_c")
    with torch.no_grad():
        first = latent_sizes(*high_res.first_size(LARGE[2], LARGE[3])).stage_c
        expected_small, features = sample_features(net, plan(first))  # type: ignore[arg-type]
        guided = plan(LARGE[1:], high_res=high_res, features=features)
        expected = sample_stage_c(net, guided)  # type: ignore[arg-type]
    assert relative_error(small, expected_small) < 1e-3
    assert relative_error(large, expected) < 1e-3
    assert relative_error(large, sampled(host)) > 1e-2


def test_a_small_image_is_followed_as_by_the_library(host: Any) -> None:
    small, net = random(2, 16, 3, 4, seed=9), networks.network("stage_c")
    with torch.no_grad():
        features = features_of(net, plan(small.shape[1:]), small)  # type: ignore[arg-type]
        guided = plan(LARGE[1:], high_res=HighRes(guides=guides()), features=features)
        expected = sample_stage_c(net, guided)  # type: ignore[arg-type]
    found, kept = two_passes(host, small_latent={"samples": small})
    assert relative_error(found, expected) < 1e-3
    assert torch.equal(kept, small)
    assert relative_error(sampled(host, model=applied(host, small)), expected) < 1e-3


def test_strength_0_is_the_plain_run(host: Any) -> None:
    large, _ = two_passes(host, strength=0.0)
    assert torch.equal(large, sampled(host))
    assert torch.equal(sampled(host, model=applied(host, random(2, 16, 3, 4), strength=0.0)), large)


def test_a_preset_sets_both_passes(host: Any) -> None:
    lora = "tiny cascade (included)"
    given = {"stage_c": model(host, "stage_c"), "stage_b": model(host, "stage_b")}
    *_, options = host.call("CascadePreset", preset="fast", lora_stage_c=lora, lora_stage_b=lora, **given)
    fast = PRESETS["fast"].stage_c
    own = {"steps": fast.steps, "cfg": fast.guidance.cfg, "sampler_name": fast.sampler_name, "shift": fast.shift}
    for found, expected in zip(two_passes(host, options=options), two_passes(host, **own), strict=True):
        assert torch.equal(found, expected)
    # The denoise of the node stays.
    start = {"latent_image": {"samples": random(*LARGE)}, "denoise": 0.5}
    found, expected = two_passes(host, options=options, **start)[0], two_passes(host, **own, **start)[0]
    assert torch.equal(found, expected)


def test_a_part_of_the_run(host: Any) -> None:
    whole, half, none = (two_passes(host, end_percent=end)[0] for end in (1.0, 0.5, 0.0))
    assert relative_error(half, whole) > 1e-3
    assert relative_error(half, none) > 1e-3


def test_comfyuis_own_sampler(host: Any) -> None:
    small = random(1, 16, 3, 4, seed=9)
    given = {"kind": "stage_c", **{name: model_pairs.conditioning(seed=i) for i, name in enumerate(conds())}}
    found = [model_pairs.sample(net, **given) for net in (applied(host, small), model(host, "stage_c"))]
    assert relative_error(found[0], found[1]) > 1e-2
    # The host splits the batch where prompts have unequal lengths: each half gets the same guides.
    given["negative"] = model_pairs.conditioning(length=9, seed=5)
    assert model_pairs.sample(applied(host, small), **given).isfinite().all()


def test_controlnets_act_in_the_first_pass_alone(host: Any) -> None:
    control = test_controlnet.control(host, "small")
    positive, negative = test_controlnet.applied(
        host, control, test_controlnet.hint("small"), positive=conditioning(POSITIVE), negative=conditioning(NEGATIVE)
    )
    large, small = two_passes(host, positive=positive, negative=negative, strength=0.0)
    plain, plain_small = two_passes(host, strength=0.0)
    assert relative_error(small, plain_small) > 1e-3
    assert torch.equal(large, plain)


def test_each_image_of_a_batch_is_the_same_alone(host: Any) -> None:
    large, small = two_passes(host)
    start = {"samples": torch.zeros(1, *LARGE[1:]), "batch_index": [1]}
    alone, alone_small = two_passes(host, latent_image=start)
    assert relative_error(alone, large[1:]) < 1e-3
    assert relative_error(alone_small, small[1:]) < 1e-3


def test_guides_load_with_the_model_and_leave_no_trace(host: Any) -> None:
    before = sampled(host)
    changed = applied(host, random(1, 16, 3, 4))
    assert guide(host).patcher in changed.get_nested_additional_models()
    assert torch.equal(sampled(host), before)


def test_both_passes_have_live_previews(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: seen.append((value, total, preview))
    )
    guide(host)
    graph = Graph()
    clip = graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
    text = graph("CascadeTextEncode", clip=clip, positive="a circle", negative="")
    stage_c = graph("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="default", previewer="auto")
    made = graph(
        "CascadeSampleHighRes",
        model=stage_c,
        guide=graph("CascadeLoadHighResGuide", guide_name=f"guides_{WIDTH}.safetensors"),
        positive=text[0],
        negative=text[1],
        latent_image=graph("CascadeEmptyLatent", preset="custom", width=256, height=192, batch_size=1),
        first_size=FIRST,
        **SETTINGS,
        **ACTING,
    )
    host.run(graph, large=made[0], small=made[1], previews="auto")
    previews = [(value, total, preview[1].size) for value, total, preview in seen if preview]
    # Eight pixels a position.
    assert [(value, total) for value, total, _ in previews] == 2 * [(1, 3), (2, 3), (3, 3)]
    assert previews[0][2] != previews[-1][2] == (48, 40)


def test_it_stops_within_a_step(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = host.pack("cascade.models.high_res")
    plain, calls = module.HighResGuide.applied, []

    def interrupted(self: Any, *args: Any) -> Tensor:
        calls.append(1)
        comfy.model_management.interrupt_current_processing(True)
        return plain(self, *args)

    monkeypatch.setattr(module.HighResGuide, "applied", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        two_passes(host)
    assert len(calls) == 1
    monkeypatch.undo()
    assert two_passes(host)[0].isfinite().all()


def test_what_does_not_fit_is_refused(host: Any) -> None:
    error = host.errors.CascadeError
    other = guide(host, replace(CONFIG, stage_c_width=2048))
    with pytest.raises(error, match=r"Stage C of width 2048 \(3.6B\); the one that is connected is a Stage C of width"):
        two_passes(host, guide=other)
    with pytest.raises(error, match="1156 positions; high-res guides read at most 1024"):
        applied(host, torch.zeros(1, 16, 34, 34))
    with pytest.raises(error, match="read at most 1024"):
        two_passes(host, first_size=1536)
    with pytest.raises(error, match="follow 3 images, and 2 are sampled"):
        sampled(host, model=applied(host, random(3, 16, 3, 4)))
    with pytest.raises(error, match="loaded by ComfyUI's own node"):
        two_passes(host, model=model_pairs.native("stage_c"))
    with pytest.raises(error, match=r"start_percent 0\.8 is after end_percent 0\.2"):
        two_passes(host, start_percent=0.8, end_percent=0.2)
    with pytest.raises(error, match="16 channels"):
        applied(host, torch.zeros(1, 4, 8, 8))
    with pytest.raises(error, match="takes a Stage C model"):
        two_passes(host, model=model(host, "stage_b"))


def test_sizes_beyond_memory_are_refused_before_sampling(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = model(host, "stage_c").memory_required([*LARGE])
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_, **__: needed / 1.4)
    with pytest.raises(host.errors.CascadeError, match=r"at 341 x 256 pixels and a batch of 2 would take about .* fit"):
        two_passes(host)


def test_another_file_is_refused(host: Any) -> None:
    with pytest.raises(host.errors.CheckpointError, match="previewer"):
        host.pack("nodes.host.high_res").load_guide(host.models / "vae" / networks.file_name("previewer"))
