"""Our outputs in the host's own nodes, and theirs in ours: prompts as the page would send them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cascade.checkpoints import save_model
from tests.nodes import networks
from tests.nodes.graphs import SETTINGS, LoadedGraph
from tests.nodes.hosting import Failed, Graph, Outputs
from tests.nodes.model_pairs import native
from tests.nodes.networks import file_name
from tests.nodes.node_calls import model
from tests.support import relative_error


def samples(host: Any, parts: LoadedGraph, **wanted: Any) -> list[Tensor]:
    result = host.run(parts.graph, **wanted)
    found = [getattr(result, name)["samples"] for name in wanted]
    assert all(torch.isfinite(each).all() for each in found)
    return found


def test_conditionings_combined_placed_masked_and_timed(host: Any) -> None:
    parts = LoadedGraph()
    graph, (one, two) = parts.graph, (parts.text[0], parts.encoded("a blue square on the right")[0])
    mask = graph("SolidMask", value=1.0, width=32, height=48)
    combinations = {
        "combined": graph("ConditioningCombine", conditioning_1=one, conditioning_2=two),
        "averaged": graph(
            "ConditioningAverage", conditioning_to=one, conditioning_from=two, conditioning_to_strength=0.5
        ),
        "concatenated": graph("ConditioningConcat", conditioning_to=one, conditioning_from=two),
        "area": graph(
            "ConditioningCombine",
            conditioning_1=one,
            conditioning_2=graph(
                "ConditioningSetAreaPercentage", conditioning=two, width=0.5, height=1.0, x=0.5, y=0.0, strength=1.0
            ),
        ),
        "pixels": graph(
            "ConditioningCombine",
            conditioning_1=one,
            conditioning_2=graph("ConditioningSetArea", conditioning=two, width=64, height=64, x=0, y=0, strength=1.0),
        ),
        "masked": graph(
            "ConditioningCombine",
            conditioning_1=one,
            conditioning_2=graph(
                "ConditioningSetMask", conditioning=two, mask=mask, strength=1.0, set_cond_area="default"
            ),
        ),
        "timed": graph(
            "ConditioningCombine",
            conditioning_1=graph("ConditioningSetTimestepRange", conditioning=one, start=0.0, end=0.5),
            conditioning_2=graph("ConditioningSetTimestepRange", conditioning=two, start=0.5, end=1.0),
        ),
        "zeroed": graph("ConditioningZeroOut", conditioning=one),
    }
    wanted: dict[str, Any] = {"plain": parts.ksampler()}
    for name, positive in combinations.items():
        wanted[f"{name}_theirs"] = parts.ksampler(positive=positive)
        wanted[f"{name}_ours"] = parts.cascade(positive=positive)
    plain, *others = samples(host, parts, **wanted)
    for found in others[::2]:
        assert relative_error(found, plain) > 1e-4


def test_the_hosts_other_samplers(host: Any) -> None:
    """The same run through each of the host's ways to sample."""
    parts = LoadedGraph()
    graph = parts.graph
    conds = {"positive": parts.text[0], "negative": parts.text[1]}
    advanced = graph(
        "KSamplerAdvanced",
        **{"model": parts.model, "latent_image": parts.latent[0], "noise_seed": 5, "steps": 2, "cfg": 4.0, **conds},
        **{"sampler_name": "euler", "scheduler": "simple", "start_at_step": 0, "end_at_step": 10000},
        **{"add_noise": "enable", "return_with_leftover_noise": "disable"},
    )
    sigmas = graph("BasicScheduler", model=parts.model, scheduler="simple", steps=2, denoise=1.0)
    sampler = graph("KSamplerSelect", sampler_name="euler")
    custom = graph(
        "SamplerCustom",
        **{"model": parts.model, "latent_image": parts.latent[0], "noise_seed": 5, "cfg": 4.0, "add_noise": True},
        **{"sampler": sampler, "sigmas": sigmas, **conds},
    )
    guided = graph(
        "SamplerCustomAdvanced",
        noise=graph("RandomNoise", noise_seed=5),
        guider=graph("CFGGuider", model=parts.model, cfg=4.0, **conds),
        sampler=sampler,
        sigmas=sigmas,
        latent_image=parts.latent[0],
    )
    plain, *others = samples(host, parts, plain=parts.ksampler(), advanced=advanced, custom=custom, guided=guided)
    assert all(relative_error(each, plain) < 1e-5 for each in others)


def test_latents_of_the_host(host: Any) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    empty = graph("StableCascade_EmptyLatentImage", width=256, height=256, compression=42, batch_size=2)
    first = parts.cascade(latent_image=empty[0])
    larger = graph("LatentUpscale", samples=first, upscale_method="bilinear", width=0, height=80, crop="disabled")
    twice = graph("RepeatLatentBatch", samples=parts.latent[0], amount=2)
    joined = graph("LatentBatch", samples1=twice, samples2=parts.latent[0])
    second = graph("LatentFromBatch", samples=joined, batch_index=1, length=1)
    everything, one, refined = samples(
        host,
        parts,
        everything=parts.cascade(latent_image=joined),
        one=parts.cascade(latent_image=second),
        refined=parts.cascade(latent_image=larger, denoise=0.5),
    )
    assert everything.shape == (3, 16, 5, 6)
    assert relative_error(one, everything[1:2]) < 1e-3
    assert refined.shape[0] == 2
    assert refined.shape[2] == 10


def test_noise_masks_of_the_host(host: Any) -> None:
    parts = LoadedGraph()
    mask = parts.graph("SolidMask", value=0.0, width=48, height=40)
    done = parts.cascade()
    masked = parts.graph("SetLatentNoiseMask", samples=done, mask=mask)
    before, theirs, ours = samples(
        host,
        parts,
        before=done,
        theirs=parts.ksampler(latent_image=masked),
        ours=parts.cascade(latent_image=masked, seed=6),
    )
    assert relative_error(theirs, before) < 1e-5
    assert relative_error(ours, before) < 1e-5


@pytest.fixture(scope="module")
def loras(host: Any) -> list[str]:
    """The same LoRA with kohya's names, with generic ones and with those of Stable Cascade's trainers."""
    generator = torch.Generator().manual_seed(1)
    folder = host.models / "loras"
    folder.mkdir(exist_ok=True)
    blocks = ["down_blocks.0.2.attention.attn.to_k", "down_blocks.0.2.kv_mapper.1", "up_blocks.0.0.channelwise.0"]
    state = networks.network("stage_c").state_dict()
    pairs = {}
    for block in blocks:
        out, inside = state[f"{block}.weight"].shape
        pairs[block] = (torch.randn(4, inside, generator=generator), torch.randn(out, 4, generator=generator) * 0.2)
    word = "layers.0.self_attn.q_proj"
    text = torch.randn(4, networks.WIDTH, generator=generator), torch.randn(networks.WIDTH, 4, generator=generator)
    names = []
    for prefix, text_prefix, generic in (
        ("lora_unet_", "lora_te_text_model_encoder_", False),
        ("lora_prior_unet_", "lora_prior_te_text_model_encoder_", False),
        ("diffusion_model.", "text_encoder.text_model.encoder.", True),
    ):
        spelled = {f"{prefix}{block if generic else block.replace('.', '_')}": pair for block, pair in pairs.items()}
        spelled[f"{text_prefix}{word if generic else word.replace('.', '_')}"] = text
        tensors = {}
        for name, (down, up) in spelled.items():
            tensors |= {
                f"{name}.lora_down.weight": down,
                f"{name}.lora_up.weight": up,
                f"{name}.alpha": torch.tensor(4.0),
            }
        file = f"{prefix.strip('_.')}.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / file)
        names.append(file)
    return names


def test_loras(host: Any, loras: list[str]) -> None:
    parts = LoadedGraph()
    wanted: dict[str, Any] = {"plain": parts.ksampler()}
    for file in loras:
        loaded = parts.graph(
            "LoraLoader", model=parts.model, clip=parts.clip, lora_name=file, strength_model=1.0, strength_clip=1.0
        )
        both = parts.encoded("a red circle on the left", clip=loaded[1])
        wanted[f"model_{file}"] = parts.ksampler(model=loaded[0])
        wanted[f"both_{file}"] = parts.ksampler(model=loaded[0], positive=both[0])
    plain, *found = samples(host, parts, **wanted)
    model, both = found[::2], found[1::2]
    assert relative_error(model[0], plain) > 1e-2
    assert relative_error(both[0], model[0]) > 1e-3
    for each, reference in ((model, model[0]), (both, both[0])):
        assert all(relative_error(other, reference) < 1e-4 for other in each)


def test_hooks(host: Any, loras: list[str]) -> None:
    """A LoRA for one conditioning alone, whose strength changes on the way: cached conditions must follow."""
    parts = LoadedGraph()
    graph = parts.graph

    def hooked(*strengths: float) -> Outputs:
        hooks = graph("CreateHookLora", lora_name=loras[0], strength_model=1.0, strength_clip=0.0)
        frames = None
        for i, strength in enumerate(strengths):
            previous = {} if frames is None else {"prev_hook_kf": frames}
            frames = graph("CreateHookKeyframe", strength_mult=strength, start_percent=i / len(strengths), **previous)
        keyed = graph("SetHookKeyframes", hooks=hooks, hook_kf=frames)
        return parts.encoded(
            "a red circle on the left",
            clip=graph("SetClipHooks", clip=parts.clip, apply_to_conds=True, schedule_clip=False, hooks=keyed),
        )

    on, off, changing = hooked(1.0), hooked(0.0), hooked(1.0, 0.0)
    wanted = {
        name: parts.ksampler(positive=text[0], negative=parts.text[1], steps=4)
        for name, text in (("plain", parts.text), ("on", on), ("off", off), ("changing", changing))
    }
    plain, with_lora, without, halfway = samples(host, parts, **wanted)
    assert relative_error(without, plain) < 1e-4
    assert relative_error(with_lora, plain) > 1e-3
    assert relative_error(halfway, with_lora) > 1e-3
    assert relative_error(halfway, plain) > 1e-3


@pytest.fixture
def others(host: Any) -> Iterator[list[str]]:
    """Files of a Stage C of other weights, and of one half way between it and the small one."""
    files = {}
    for name, share in (("other_c.safetensors", 1.0), ("half_c.safetensors", 0.5)):
        net = copy.deepcopy(networks.network("stage_c"))
        generator = torch.Generator().manual_seed(5)
        for parameter in net.parameters():
            parameter.data += share * 0.05 * torch.randn(parameter.shape, generator=generator)
        files[name] = host.models / "diffusion_models" / name
        save_model(net, files[name])
    yield list(files)
    for path in files.values():
        path.unlink()


def test_model_merging_of_the_host(host: Any, others: list[str]) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    other, half = (graph("CascadeLoadStageC", unet_name=name, weight_dtype="fp32", previewer="none") for name in others)
    merged = graph("ModelMergeSimple", model1=parts.model, model2=other, ratio=0.5)
    plain, between, same = samples(
        host,
        parts,
        plain=parts.ksampler(),
        between=parts.ksampler(model=half),
        same=parts.ksampler(model=merged),
    )
    assert relative_error(between, plain) > 1e-2
    assert relative_error(same, between) < 1e-4


def test_model_patches_of_the_host(host: Any) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    plain, eight, shifted, rescaled, skipped = samples(
        host,
        parts,
        plain=parts.ksampler(),
        eight=parts.ksampler(steps=8),
        shifted=parts.ksampler(model=graph("ModelSamplingStableCascade", model=parts.model, shift=4.0)),
        rescaled=parts.ksampler(model=graph("RescaleCFG", model=parts.model, multiplier=0.7)),
        skipped=parts.ksampler(
            steps=8,
            model=graph(
                "EasyCache", model=parts.model, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False
            ),
        ),
    )
    assert relative_error(shifted, plain) > 1e-3
    assert relative_error(rescaled, plain) > 1e-3
    assert 1e-4 < relative_error(skipped, eight) < 1


def test_easy_cache_saves_calls(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = host.pack("nodes.host.networks")
    calls: list[int] = []
    denoise = nets.HostStageC.denoise
    monkeypatch.setattr(nets.HostStageC, "denoise", lambda *a, **k: calls.append(1) or denoise(*a, **k), raising=False)
    parts = LoadedGraph()
    cached = parts.graph(
        "EasyCache", model=parts.model, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False
    )
    samples(host, parts, cached=parts.ksampler(steps=8, model=cached))
    assert len(calls) < 8


def test_image_variation(host: Any) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    vision = graph("CascadeLoadImageEncoder", clip_name=file_name("image_encoder"))
    image = graph("EmptyImage", width=64, height=64, batch_size=1, color=0xFF8800)
    seen = graph("CLIPVisionEncode", clip_vision=vision, image=image, crop="center")
    keywords = {"clip_vision_output": seen, "strength": 1.0, "noise_augmentation": 0.0}
    once = graph("unCLIPConditioning", conditioning=parts.text[0], **keywords)
    twice = graph("unCLIPConditioning", conditioning=once, **keywords)
    plain, one, two = samples(
        host,
        parts,
        plain=parts.ksampler(),
        one=parts.ksampler(positive=once),
        two=parts.ksampler(positive=twice),
    )
    assert relative_error(one, plain) > 1e-3
    assert relative_error(two, one) > 1e-3


def test_the_hosts_own_graph_for_stage_b_and_images(host: Any) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    model = graph("CascadeLoadStageB", unet_name=file_name("stage_b"), weight_dtype="fp32")
    vae = graph("CascadeLoadStageA", vae_name=file_name("stage_a"), weight_dtype="fp32")
    with_c = graph("StableCascade_StageB_Conditioning", conditioning=parts.text[0], stage_c=parts.ksampler())
    large = parts.ksampler(model=model, positive=with_c, latent_image=parts.latent[1], cfg=1.1)
    image = graph("VAEDecode", samples=large, vae=vae)
    tiled = graph(
        "VAEDecodeTiled", samples=large, vae=vae, tile_size=128, overlap=32, temporal_size=64, temporal_overlap=8
    )
    encoded = graph("VAEEncode", pixels=image, vae=vae)
    tiles = graph(
        "VAEEncodeTiled", pixels=image, vae=vae, tile_size=128, overlap=32, temporal_size=64, temporal_overlap=8
    )
    result = host.run(graph, image=image, tiled=tiled, encoded=encoded, tiles=tiles)
    assert result.image.shape == result.tiled.shape == (1, 192, 256, 3)
    assert result.encoded["samples"].shape == result.tiles["samples"].shape == (1, 4, 48, 64)
    assert 0 <= float(result.image.min()) <= float(result.image.max()) <= 1


def patched(parts: LoadedGraph, node: str, **inputs: Any) -> tuple[Any, Any]:
    """What ComfyUI's sampler and ours make of a model with a patch."""
    model = parts.graph(node, model=parts.model, **inputs)
    return parts.ksampler(model=model), parts.cascade(model=model)


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("PerturbedAttentionGuidance", {"scale": 3.0}),
        ("RenormCFG", {"cfg_trunc": 100.0, "renorm_cfg": 0.5}),
        *(
            (
                "SkipLayerGuidanceDiT",
                {"scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0, **layers},
            )
            for layers in ({"double_layers": "1", "single_layers": ""}, {"double_layers": "", "single_layers": "0, 2"})
        ),
        (
            "SkipLayerGuidanceDiTSimple",
            {"double_layers": "0", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0},
        ),
    ],
)
def test_guidance_of_the_host_acts(host: Any, node: str, inputs: dict[str, Any]) -> None:
    parts = LoadedGraph()
    theirs, ours = patched(parts, node, **inputs)
    plain, by_theirs, our_plain, by_ours = samples(
        host, parts, plain=parts.ksampler(), theirs=theirs, our_plain=parts.cascade(), ours=ours
    )
    assert relative_error(by_theirs, plain) > 1e-3
    assert relative_error(by_ours, our_plain) > 1e-3


def test_skipped_layers_that_are_not_there_change_nothing(host: Any) -> None:
    parts = LoadedGraph()
    limits = {"scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0}
    found, _ = patched(parts, "SkipLayerGuidanceDiT", double_layers="7", single_layers="7", **limits)
    plain, skipped = samples(host, parts, plain=parts.ksampler(), skipped=found)
    assert relative_error(skipped, plain) < 1e-5


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        (
            "ModelSamplingFlux",
            {"max_shift": 1.15, "base_shift": 0.5, "width": 256, "height": 256},
            "noise levels of another",
        ),
        ("SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}, "does not fit Stable Cascade"),
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_what_does_not_fit_is_said(host: Any, node: str, inputs: dict[str, Any], message: str, ours: bool) -> None:
    parts = LoadedGraph()
    with pytest.raises(Failed, match=message) as failed:
        host.run(parts.graph, found=patched(parts, node, **inputs)[int(ours)])
    assert failed.value.details["exception_type"] == "stable_cascade.CascadeError"


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("FreeU", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
        ("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
        ("HyperTile", {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
        ("TomePatchModel", {"ratio": 0.5}),
        ("NAGuidance", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    ],
)
def test_what_has_no_effect_is_said(
    host: Any, node: str, inputs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    if node not in host.classes:
        pytest.skip(f"this ComfyUI has no {node}")
    parts = LoadedGraph()
    plain, found = samples(host, parts, plain=parts.ksampler(), found=patched(parts, node, **inputs)[0])
    assert relative_error(found, plain) < 1e-5
    assert [each for each in caplog.records if "has no effect on Stable Cascade" in each.getMessage()]


def test_errors_name_no_folder_of_this_machine(host: Any) -> None:
    folder = host.models / "diffusion_models" / "sub"
    folder.mkdir(exist_ok=True)
    (folder / "broken.safetensors").write_bytes(b"<html>" + bytes(100))
    graph = Graph()
    try:
        name = {"unet_name": "sub/broken.safetensors", "weight_dtype": "fp32"}
        with pytest.raises(Failed) as failed:
            host.run(graph, model=graph("CascadeLoadStageB", **name))
    finally:
        (folder / "broken.safetensors").unlink()
        folder.rmdir()
    assert failed.value.details["exception_type"] == "stable_cascade.BrokenCheckpoint"
    assert failed.value.details["exception_message"].startswith("sub/broken.safetensors: ")
    assert str(host.base) not in failed.value.details["exception_message"]


@pytest.mark.parametrize("node", ["CascadeSampleStageC", "CascadeSampleStageB"])
def test_the_hosts_own_models_in_our_samplers(host: Any, node: str) -> None:
    conditioning = [[torch.randn(1, 7, networks.WIDTH), {"pooled_output": torch.randn(1, networks.WIDTH)}]]
    settings = {"seed": 7, "steps": 2, "cfg": 4.0, "shift": 2.0, **SETTINGS}
    stage = "stage_c" if node.endswith("C") else "stage_b"
    small = {"samples": torch.randn(1, 16, 5, 6)}
    given = {"latent_image": small} if stage == "stage_c" else {"stage_c": small}
    theirs, ours = (
        host.call(node, model=each, positive=conditioning, negative=conditioning, **given, **settings)[0]["samples"]
        for each in (native(stage), model(host, stage))
    )
    assert relative_error(theirs, ours) < 1e-3


def test_a_saved_checkpoint_is_loaded_again(host: Any) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    vae = graph("CascadeLoadEncoder", vae_name=file_name("effnet"), previewer="auto", weight_dtype="fp32")
    graph("CheckpointSave", model=parts.model, clip=parts.clip, vae=vae, filename_prefix="saved")
    host.run(graph, latent=parts.ksampler())
    [path] = (host.base / "output").glob("saved*.safetensors")
    loaded = host.pack("nodes.host.models").load_stage("stage_c", path)
    assert set(loaded.model_state_dict()) == set(native("stage_c").model_state_dict())
    assert set(host.pack("nodes.host.files").kinds(path)) >= {"stage_c", "effnet", "previewer", "text_encoder"}
    path.unlink()
