"""Our samplers: the library's images, and what an artist may do to them."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.samplers
import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageBInputs, StageCInputs
from cascade.diffusion import SAMPLERS, Guidance
from cascade.pipelines import SamplingSettings
from tests.nodes import networks
from tests.nodes.graphs import OPTIONS, LoadedGraph, cascade, sampled
from tests.nodes.hosting import Failed, Graph
from tests.nodes.networks import file_name, library_sample, random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, conditioning, model, stage_b, stage_c
from tests.support import relative_error

DEFAULT = Guidance()


def library_stage_c(
    batch: int = 1, seeds: list[int] | None = None, guidance: Guidance = DEFAULT, **changes: Any
) -> Tensor:
    settings = SamplingSettings(**{"steps": 4, "guidance": guidance, "shift": 2.0, **changes})
    inputs = StageCInputs.without_image(POSITIVE.expand(batch), networks.IMAGE)
    return library_sample("stage_c", inputs, NEGATIVE, size=(16, 5, 6), seeds=seeds or [7], settings=settings)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stage_c_is_the_librarys(host: Any, sampler: str) -> None:
    settings: dict[str, Any] = {"sampler_name": sampler, "steps": 6}
    assert relative_error(stage_c(host, **settings), library_stage_c(**settings)) < 1e-4


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "res_multistep"])
def test_many_steps_have_equal_noise_levels_and_stay_finite(host: Any, sampler: str) -> None:
    settings: dict[str, Any] = {"sampler_name": sampler, "steps": 90}
    assert relative_error(stage_c(host, **settings), library_stage_c(**settings)) < 1e-3


def test_stage_b_is_the_librarys(host: Any) -> None:
    small = random(2, 16, 5, 6)
    inputs = StageBInputs(small, POSITIVE.expand(2).pooled)
    settings = SamplingSettings(steps=3, guidance=Guidance(cfg=1.1), shift=1.0)
    expected = library_sample("stage_b", inputs, NEGATIVE, size=(4, 54, 64), seeds=[7, 8], settings=settings)
    # The host's latents of Stage B are not divided by Stage A's scale factor.
    assert relative_error(stage_b(host, small), expected * networks.CONFIGS["stage_a"].scale_factor) < 1e-3


@pytest.mark.parametrize(
    ("changes", "guidance"),
    [
        ({"cfg_rescale": 0.0}, Guidance(cfg_rescale=0.0)),
        ({"cfg_rescale": 1.0, "cfg": 8.0}, Guidance(cfg=8.0, cfg_rescale=1.0)),
        ({"cfg_end": 1.0}, Guidance(cfg_end=1.0)),
        ({"start_percent": 0.25, "end_percent": 0.5}, Guidance(start_percent=0.25, end_percent=0.5)),
        ({"cfg": 1.0}, Guidance(cfg=1.0)),
        ({"rescale_scope": "whole batch (as released)"}, Guidance(per_image=False)),
    ],
)
def test_guidance_is_the_librarys(host: Any, changes: dict[str, Any], guidance: Guidance) -> None:
    expected = library_stage_c(batch=2, seeds=[7, 8], guidance=guidance)
    assert relative_error(stage_c(host, batch=2, **changes), expected) < 1e-3


def test_where_guidance_does_not_act_there_is_one_call(host: Any) -> None:
    batches: list[int] = []

    def count(apply: Any, args: Any) -> Tensor:
        batches.append(len(args["input"]))
        return apply(args["input"], args["timestep"], **args["c"])

    counted = model(host, "stage_c").clone()
    counted.set_model_unet_function_wrapper(count)
    stage_c(host, model=counted, start_percent=0.25, end_percent=0.5)
    assert batches == [1, 2, 2, 1]


@pytest.mark.parametrize("sampler", ["ddpm", "euler_ancestral", "lcm", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m"])
def test_an_image_is_the_same_alone_and_in_a_batch(host: Any, sampler: str) -> None:
    both = stage_c(host, batch=2, sampler_name=sampler)
    assert relative_error(stage_c(host, sampler_name=sampler), both[:1]) < 1e-3
    assert relative_error(stage_c(host, sampler_name=sampler, seed=8), both[1:]) < 1e-3
    second = {"samples": torch.zeros(1, 16, 5, 6), "batch_index": [1]}
    assert relative_error(stage_c(host, sampler_name=sampler, latent_image=second), both[1:]) < 1e-3


def test_every_sampler_of_the_host_is_offered(host: Any) -> None:
    offered = host.pack("nodes.host.sampling").sampler_names()
    assert offered[0] == "ddpm"
    assert set(offered) == set(comfy.samplers.KSampler.SAMPLERS)


SPREAD = 0.5
"""Standard deviation of the latents that a known denoiser leads to."""
ADD_NOISE = ("ddpm", "lcm", "ancestral", "sde", "seeds", "sa_solver")
"""Parts of the names of samplers that add noise on the way."""
FOUND_SPREAD = {"lcm": (0.6, 0.7)}
"""Part of the spread that is left after 40 steps. lcm keeps less of it: it takes the mean of what is possible."""
FOUND_ERROR = {"dpm_adaptive": 0.35}
"""Distance from the solution, in spreads. dpm_adaptive chooses its steps by a tolerance of its own, a coarse one."""


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_of_the_host_leads_to_the_known_answer(host: Any, sampler: str) -> None:
    """All names, those with _gpu too, run on a CPU. The network is replaced by the exact denoiser of normally
    distributed latents, for which the probability flow has a solution in closed form (Karras et al. 2022, eq. 1)."""
    shape = (1, 16, 24, 24)
    mean, calls = random(*shape, seed=3), []

    def known(_apply: Any, args: Any) -> Tensor:
        x, sigma = args["input"], args["timestep"].view(-1, 1, 1, 1)
        calls.append((x[:1], sigma[:1]))
        return (mean * sigma**2 + x * SPREAD**2) / (SPREAD**2 + sigma**2)

    exact = model(host, "stage_c").clone()
    exact.set_model_unet_function_wrapper(known)
    latent = {"samples": torch.zeros(shape)}
    found = (stage_c(host, model=exact, latent_image=latent, sampler_name=sampler, steps=40) - mean) / SPREAD
    start, sigma = calls[0]
    solution = (start - mean) / (SPREAD**2 + sigma**2).sqrt()
    error = float((found - solution).square().mean().sqrt())
    if any(part in sampler for part in ADD_NOISE):
        low, high = FOUND_SPREAD.get(sampler, (0.8, 1.1))
        assert low < float(found.std()) < high
        assert abs(float(found.mean())) < 0.03
        # Of two independent latents it would be the root of 2.
        assert error > 1
    else:
        assert error < FOUND_ERROR.get(sampler, 0.1)


def test_denoise_keeps_what_was_there(host: Any) -> None:
    latent = {"samples": random(1, 16, 5, 6)}
    distances = [
        relative_error(
            stage_c(host, latent_image=latent, denoise=denoise, sampler_name="ddim", cfg=1.0), latent["samples"]
        )
        for denoise in (0.05, 0.5, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.3


def test_a_mask_keeps_what_it_covers(host: Any) -> None:
    mask = torch.zeros(1, 1, 40, 48)
    mask[..., 24:] = 1
    latent = {"samples": random(1, 16, 5, 6), "noise_mask": mask}
    result = stage_c(host, latent_image=latent)
    assert relative_error(result[..., :2], latent["samples"][..., :2]) < 1e-5
    assert relative_error(result[..., 4:], latent["samples"][..., 4:]) > 0.1


def test_the_size_of_stage_b_is_that_of_its_latent(host: Any) -> None:
    small = random(1, 16, 5, 6)
    assert stage_b(host, small).shape == (1, 4, 54, 64)
    assert stage_b(host, small, latent_image={"samples": torch.zeros(1, 4, 52, 62)}).shape == (1, 4, 52, 62)
    assert stage_b(host, random(3, 16, 5, 6), latent_image={"samples": torch.zeros(1, 4, 16, 16)}).shape[0] == 3


def hosts_noise_levels(patcher: Any) -> Any:
    """What the host's own model would have."""
    return comfy.model_base.model_sampling(patcher.model.model_config, comfy.model_base.ModelType.STABLE_CASCADE)


@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_a_model_has_the_hosts_noise_levels(host: Any, kind: str) -> None:
    patcher = model(host, kind)
    ours, theirs = patcher.get_model_object("model_sampling"), hosts_noise_levels(patcher)
    assert ours.shift == theirs.shift
    assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=1e-5)
    assert torch.equal(ours.percent_to_sigma(0.3), theirs.percent_to_sigma(0.3))
    assert patcher.model.model_type == comfy.model_base.ModelType.STABLE_CASCADE


def test_shift_moves_percentages_too(host: Any) -> None:
    sampling = host.pack("nodes.host.sampling")
    plain = model(host, "stage_c")
    assert sampling.shifted(plain, 2.0) is plain
    changed = sampling.shifted(plain, 3.0).get_model_object("model_sampling")
    expected = hosts_noise_levels(plain)
    expected.set_parameters(3.0)
    assert torch.allclose(changed.sigmas, expected.sigmas, rtol=1e-4)
    assert changed.percent_to_sigma(0.3) == expected.percent_to_sigma(0.3)


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_sigmas_are_released_and_lead_back_to_their_times(host: Any, shift: float) -> None:
    [sigmas] = host.call("CascadeSigmas", steps=10, shift=shift, start_percent=0.0, end_percent=1.0)
    assert sigmas.shape == (11,)
    assert sigmas[-1] == 0
    simple = comfy.samplers.calculate_sigmas(
        host.pack("nodes.host.sampling").shifted(model(host, "stage_c"), shift).get_model_object("model_sampling"),
        "simple",
        10,
    )
    assert torch.allclose(sigmas, simple, rtol=1e-3)
    sampling = host.pack("nodes.host.sampling")
    shifted = sampling.shifted(model(host, "stage_c"), shift).get_model_object("model_sampling")
    percents = [sampling.percent_of(float(sigma), shifted) for sigma in sigmas[:-1]]
    assert percents == pytest.approx([i / 10 for i in range(10)], abs=1e-5)


def custom(graph: Graph, loaded: Any, text: Any, latent: Any) -> Any:
    guider = graph(
        "CascadeGuider",
        model=loaded,
        positive=text[0],
        negative=text[1],
        cfg=4.0,
        options=graph("CascadeSamplingOptions", **{**OPTIONS, "cfg_rescale": 0.0}),
    )
    return graph(
        "SamplerCustomAdvanced",
        noise=graph("RandomNoise", noise_seed=3),
        guider=guider,
        sampler=graph("KSamplerSelect", sampler_name="euler"),
        sigmas=graph("CascadeSigmas", steps=4, shift=2.0, start_percent=0.0, end_percent=1.0),
        latent_image=latent,
    )


def test_custom_sampling_is_the_hosts_where_both_can_do_it(host: Any) -> None:
    parts = LoadedGraph()
    found = custom(parts.graph, parts.model, parts.text, parts.latent[0])
    result = host.run(parts.graph, found=found, expected=parts.ksampler(seed=3, steps=4))
    assert relative_error(result.found["samples"], result.expected["samples"]) < 1e-3


def test_a_guidance_function_on_the_model_wins(host: Any) -> None:
    changed = model(host, "stage_c").clone()
    changed.set_model_sampler_cfg_function(lambda args: args["uncond"])
    expected = stage_c(host, cfg=1.0, positive=conditioning(NEGATIVE))
    assert relative_error(stage_c(host, model=changed), expected) < 1e-3


def broken(host: Any, kind: str) -> Any:
    """A model whose last layer has become infinite."""
    changed = model(host, kind).clone()
    name = "diffusion_model.clf.1.weight"
    changed.add_patches({name: (torch.full_like(changed.model_state_dict()[name], torch.inf),)})
    return changed


def test_infinite_latents_stop_with_a_cure(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match=r"Stage C's result is not finite.*dtype bf16 or fp32"):
        stage_c(host, model=broken(host, "stage_c"))
    with pytest.raises(host.errors.CascadeError, match=r"Stage B's result is not finite.*dtype bf16 or fp32"):
        stage_b(host, random(1, 16, 5, 6), model=broken(host, "stage_b"))
    with pytest.raises(host.errors.CascadeError, match=r"Stage C's latent is not finite"):
        stage_b(host, torch.full((1, 16, 5, 6), torch.nan))


def test_wrong_models_and_latents_are_explained(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match=r"takes a Stage C model; the one that is connected is Stage B"):
        stage_c(host, model=model(host, "stage_b"))
    with pytest.raises(
        Exception, match=r"Stage C's latents, which have 16 channels; these have 4: they are those of Stage B"
    ):
        stage_c(host, latent_image={"samples": torch.ones(1, 4, 8, 8)})
    with pytest.raises(
        Exception, match=r"these have 4: an empty latent of ComfyUI or .* Connect stage_c of Empty Latent"
    ):
        stage_c(host, latent_image={"samples": torch.zeros(1, 4, 8, 8)})
    for shape, shown in (((0, 16, 6, 6), "0 x 16 x 6 x 6"), ((1, 16, 1, 6, 6), "1 x 16 x 1 x 6 x 6")):
        with pytest.raises(
            host.errors.CascadeError, match=rf"batch x 16 x height x width .* these are {shown}.*Empty Latent"
        ):
            stage_c(host, latent_image={"samples": torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"start_percent 0.5 must not be above end_percent 0.1"):
        stage_c(host, start_percent=0.5, end_percent=0.1)


def with_stage_b(graph: Graph, positive: Any) -> dict[str, Any]:
    """Inputs of ComfyUI's samplers for Stage B."""
    loaded = graph("CascadeLoadStageB", unet_name=file_name("stage_b"), weight_dtype="fp32")
    return {"model": loaded, "positive": positive, "seed": 9, "cfg": 1.0}


def test_stage_b_without_stage_c_is_said(host: Any) -> None:
    """An error in our Guider, a warning on ComfyUI's KSampler."""
    parts = LoadedGraph()
    given = with_stage_b(parts.graph, parts.text[0])
    guider = {"model": given["model"], "positive": parts.text[0], "negative": parts.text[1], "cfg": 1.1}
    with pytest.raises(Failed, match=r"Stage B got no latent of Stage C.*StableCascade_StageB_Conditioning"):
        host.run(parts.graph, guider=parts.graph("CascadeGuider", **guider))


@pytest.mark.parametrize("conditioned", [False, True])
def test_comfyuis_sampler_warns_of_stage_b_without_stage_c(
    host: Any, conditioned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    parts = LoadedGraph()
    positive = parts.text[0]
    if conditioned:
        latent = parts.ksampler()
        positive = parts.graph("StableCascade_StageB_Conditioning", conditioning=positive, stage_c=latent)
    large = parts.ksampler(**with_stage_b(parts.graph, positive), latent_image=parts.latent[1])
    host.run(parts.graph, large=large)
    warned = [record for record in caplog.records if "Stage B got no latent of Stage C" in record.getMessage()]
    assert len(warned) == (0 if conditioned else 1)


LEARNED, COLOR_MATRIX = (48, 40), (6, 5)
"""Sizes of the two kinds of previews of Stage C's latent of 6 x 5."""


@pytest.mark.parametrize(
    ("previewer", "method", "size"),
    [
        ("auto", "auto", LEARNED),
        (file_name("previewer"), "taesd", LEARNED),
        ("small_c.safetensors", "auto", LEARNED),
        ("auto", "latent2rgb", COLOR_MATRIX),
        ("none", "auto", COLOR_MATRIX),
        ("none", "taesd", COLOR_MATRIX),
        ("auto", "none", None),
        ("none", "none", None),
    ],
)
def test_every_step_has_one_preview_of_the_chosen_kind(
    host: Any, progress: list[Any], previewer: str, method: str, size: tuple[int, int] | None
) -> None:
    host.run(sampled(previewer), fresh=True, previews=method)
    images = [(value, total, preview[1].size) for value, total, preview in progress if preview]
    assert images == ([] if size is None else [(step, 4, size) for step in (1, 2, 3, 4)])


def test_a_preview_is_the_previewers_image(host: Any, progress: list[Any]) -> None:
    latent = host.run(sampled("auto", steps=1), fresh=True, previews="auto").latent["samples"]
    with torch.no_grad():
        expected = networks.network("previewer")(latent)[0].clamp(0, 1).movedim(0, -1)
    [preview] = [np.asarray(preview[1]) / 255 for *_, preview in progress]
    assert np.abs(preview - expected.numpy()).max() < 2 / 255


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "lcm", "heun", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_previews_come_with_every_sampler(host: Any, progress: list[Any], sampler: str) -> None:
    graph = Graph()
    _, sampling = cascade(graph)
    graph.prompt[sampling.node]["inputs"]["sampler_name"] = sampler
    host.run(graph, latent=sampling, previews="auto")
    assert [value for value, _, preview in progress if preview] == [1, 2, 3]


@pytest.mark.parametrize("method", ["none", "auto", "latent2rgb", "taesd"])
def test_both_stages_tell_their_progress_and_preview_once_a_step(host: Any, progress: list[Any], method: str) -> None:
    graph = Graph()
    image, _ = cascade(graph)
    host.run(graph, fresh=True, previews=method, image=image)
    steps = [(1, 3), (2, 3), (3, 3), (1, 2), (2, 2)]
    assert [(value, total) for value, total, preview in progress if preview] == (steps if method != "none" else [])
    # The host leaves out what follows within a tenth of a second and has no preview.
    assert {(1, 3), (3, 3), (1, 2), (2, 2)} <= {(value, total) for value, total, _ in progress} <= set(steps)


def test_large_attention_in_parts_is_the_same(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stage_c(host)
    monkeypatch.setattr(host.pack("nodes.host.networks").HostAttention, "PAIRS", 100)
    assert relative_error(stage_c(host), whole) < 1e-5


def test_stop_is_heard_within_large_attention(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = host.pack("nodes.host.networks")
    attend, calls = nets.HostAttention._attend, []

    def interrupted(self: Any, *args: Any) -> Tensor:
        calls.append(1)
        comfy.model_management.interrupt_current_processing(True)
        return attend(self, *args)

    monkeypatch.setattr(nets.HostAttention, "PAIRS", 100)
    monkeypatch.setattr(nets.HostAttention, "_attend", interrupted)
    with pytest.raises(Failed):
        host.run(sampled("none"))
    assert len(calls) == 1


def test_stop_is_heard_within_a_step_and_frees_memory(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    nets = host.pack("nodes.host.networks")
    denoise = nets.HostStageC.denoise

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        self_nets.append(self)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing(True)
        return denoise(self, *args, **kwargs)

    self_nets: list[Any] = []
    monkeypatch.setattr(nets.HostStageC, "denoise", interrupted, raising=False)
    with pytest.raises(Failed):
        host.run(sampled("auto", steps=20))
    assert len(calls) == 2
    assert self_nets[0].cache.entries == []
    monkeypatch.undo()
    host.run(sampled("auto", steps=2))
