"""Our CONTROL_NET beside the host's own with the same weights, and what ours puts right."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.controlnet
import comfy.ldm.cascade.controlnet
import comfy.sd1_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cascade import models
from cascade.checkpoints import save_model
from cascade.models import ControlNet, ControlNetConfig
from tests.nodes import networks
from tests.nodes.graphs import LoadedGraph
from tests.nodes.hosting import Graph, Outputs
from tests.nodes.model_pairs import conditioning, native, ours, sample
from tests.nodes.networks import random
from tests.support import relative_error

BLOCKS = (0, 2, 3, 5)
WIDTH = networks.CONFIGS["stage_c"].levels[0].width
SIZE = (2, 16, 6, 5)
CONFIGS = {
    "canny": ControlNetConfig(in_channels=1, width=WIDTH, blocks=BLOCKS),
    "inpainting": ControlNetConfig(in_channels=4, width=WIDTH, blocks=BLOCKS),
    "super resolution": ControlNetConfig(in_channels=16, width=WIDTH, blocks=BLOCKS, backbone="large"),
    "identity": ControlNetConfig(in_channels=512, width=WIDTH, blocks=BLOCKS, backbone="simple"),
    "small": ControlNetConfig(in_channels=5, width=WIDTH, blocks=BLOCKS, backbone="simple"),
}


def filled(config: ControlNetConfig, seed: int = 0) -> nn.Module:
    """A random net whose residuals matter."""
    torch.manual_seed(seed)
    net = models.initialize(ControlNet(config))
    if config.reads_images:
        # Fresh statistics of the batch norms let next to nothing through so many layers.
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        net.train()(torch.rand(2, config.in_channels, 192, 160))
    for projection in net.projections:
        nn.init.normal_(projection[2].weight, std=0.5 * config.width**-0.5)
    return net.eval().requires_grad_(False)


@cache
def network(kind: str) -> nn.Module:
    return filled(CONFIGS[kind])


@cache
def control(host: Any, kind: str) -> Any:
    path = host.models / "controlnet" / f"{kind}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_model(network(kind), path)
    return host.pack("nodes.host.control").load_control(path)[0]


@cache
def native_control(kind: str) -> Any:
    """The host's own object with the same weights."""
    config = CONFIGS[kind]
    mode = None if config.backbone == "effnet" else config.backbone
    net = comfy.ldm.cascade.controlnet.ControlNet(config.in_channels, WIDTH, list(BLOCKS), mode)
    net.load_state_dict(network(kind).state_dict(), assign=True)
    down, how = (32, "bilinear") if config.backbone == "effnet" else (1, "nearest-exact")
    return comfy.controlnet.T2IAdapter(net.eval(), config.in_channels, down, how)


def hint(kind: str, batch: int = 1, seed: int = 4) -> Tensor:
    """An IMAGE [B, H, W, c]."""
    side = (192, 160) if CONFIGS[kind].reads_images else (6, 5)
    channels = 3 if kind == "canny" else CONFIGS[kind].in_channels
    made = torch.rand(batch, *side, channels, generator=torch.Generator().manual_seed(seed))
    return made[..., :1].expand(-1, -1, -1, 3) if kind == "canny" else made


def applied(host: Any, net: Any, image: Tensor, **changes: Any) -> tuple[Any, Any]:
    """Both conditionings with a net, by our node."""
    given = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "apply_to": "positive and negative"} | changes
    given = {"positive": conditioning(), "negative": conditioning(seed=2), **given}
    return host.call("CascadeApplyControlNet", **given, control_net=net, image=image)


def edges(graph: Graph, image: Any) -> Outputs:
    """A canny hint."""
    return graph("CascadeCannyHint", image=image, resolution="full size", low_threshold=100.0, high_threshold=200.0)


def run(model: Any, conds: tuple[Any, Any], **options: Any) -> Tensor:
    return sample(model, "stage_c", *conds, **{"shape": SIZE, "steps": 3, **options})


@pytest.mark.parametrize("kind", ["canny", "inpainting", "super resolution"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_same_as_the_hosts_own_pair(host: Any, kind: str, batch: int) -> None:
    shape = (batch, *SIZE[1:])
    image = hint(kind, batch)
    model, theirs = ours(host, "stage_c"), native("stage_c")
    expected = run(theirs, applied(host, native_control(kind), image, strength=0.7), shape=shape)
    assert (
        relative_error(run(model, applied(host, control(host, kind), image, strength=0.7), shape=shape), expected)
        < 1e-4
    )
    # Each with the other's half.
    assert (
        relative_error(run(model, applied(host, native_control(kind), image, strength=0.7), shape=shape), expected)
        < 1e-4
    )
    assert (
        relative_error(run(theirs, applied(host, control(host, kind), image, strength=0.7), shape=shape), expected)
        < 1e-4
    )
    plain = run(model, (conditioning(), conditioning(seed=2)), shape=shape)
    assert relative_error(expected, plain) > 1e-2


def test_the_hosts_own_apply_node(host: Any) -> None:
    model, net, image = ours(host, "stage_c"), control(host, "small"), hint("small")
    theirs = host.classes["ControlNetApplyAdvanced"]().apply_controlnet(
        conditioning(), conditioning(seed=2), net, image, 0.8, 0.0, 1.0
    )
    assert relative_error(run(model, theirs), run(model, applied(host, net, image, strength=0.8))) < 1e-5


def sampled(host: Any, model: Any, conds: Any, indices: tuple[int, ...] = (0, 1), **guidance: Any) -> Tensor:
    """Four steps of ddim from the noise of these images of a batch, with our guidance."""
    diffusion = host.pack("cascade.diffusion")
    settings = diffusion.SamplingSettings(
        steps=4, shift=2.0, sampler_name="ddim", guidance=diffusion.Guidance(**guidance)
    )
    latent = {"samples": torch.zeros(len(indices), *SIZE[1:]), "batch_index": list(indices)}
    with torch.inference_mode():
        sample = host.pack("nodes.host.sampling").sample_stage_c
        return sample(model, *conds, latent, 5, settings, as_released=False)["samples"]


def test_each_image_of_a_batch_follows_its_own_hint(host: Any) -> None:
    """Also where guidance ends on the way, and with it the doubled batch."""
    net, images, model = control(host, "canny"), hint("canny", 2), ours(host, "stage_c")
    found = sampled(host, model, applied(host, net, images), end_percent=0.5)
    for i in range(2):
        alone = sampled(host, model, applied(host, net, images[i : i + 1]), (i,), end_percent=0.5)
        assert relative_error(found[i : i + 1], alone) < 1e-3
    swapped = sampled(host, model, applied(host, net, images.flip(0)), end_percent=0.5)
    assert relative_error(swapped, found) > 1e-2


def test_strength_0_is_as_without(host: Any) -> None:
    model = ours(host, "stage_c")
    positive, negative = conditioning(), conditioning(seed=2)
    conds = applied(host, control(host, "small"), hint("small"), positive=positive, negative=negative, strength=0.0)
    assert conds[0] is positive
    assert conds[1] is negative
    assert torch.equal(run(model, conds), run(model, (positive, negative)))


@pytest.mark.parametrize(
    ("start", "end", "acting"), [(0.0, 0.5, [0, 1, 2]), (0.5, 1.0, [2, 3]), (0.0, 1.0, [0, 1, 2, 3])]
)
def test_it_acts_in_its_part_of_the_run_alone(
    host: Any, monkeypatch: pytest.MonkeyPatch, start: float, end: float, acting: list[int]
) -> None:
    model = ours(host, "stage_c")
    seen: list[bool] = []
    denoise = model.model.diffusion_model.denoise

    def watched(*args: Any, control: Any = None, **kwargs: Any) -> Tensor:
        seen.append(control is not None)
        return denoise(*args, control=control, **kwargs)

    monkeypatch.setattr(model.model.diffusion_model, "denoise", watched)
    sampled(host, model, applied(host, control(host, "small"), hint("small"), start_percent=start, end_percent=end))
    assert [step for step, controlled in enumerate(seen) if controlled] == acting


def test_a_hint_is_read_once(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = control(host, "small").net
    calls: list[int] = []
    backbone = net.backbone.forward
    monkeypatch.setattr(net.backbone, "forward", lambda x: calls.append(1) or backbone(x))
    model = ours(host, "stage_c")
    conds = applied(host, control(host, "small"), hint("small"))
    first = run(model, conds, steps=4)
    assert len(calls) == 1
    assert torch.equal(run(model, conds, steps=4), first)
    assert len(calls) == 1
    run(model, conds, steps=4, shape=(2, 16, 8, 5))
    assert len(calls) == 2
    conds[0][0][1]["control"].set_cond_hint(hint("small", seed=8).movedim(-1, 1))
    other = run(model, conds, steps=4)
    assert len(calls) == 3
    assert torch.equal(other, run(model, applied(host, control(host, "small"), hint("small", seed=8)), steps=4))


def test_the_next_of_a_queue_has_prompt_image_and_hint(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another seed does not change is not computed again, by the host or by us."""
    control(host, "canny")
    counts = dict.fromkeys(("prompt", "image", "hint"), 0)
    places = {
        "prompt": (comfy.sd1_clip.SDClipModel, "forward"),
        "image": (comfy.clip_vision.ClipVisionModel, "encode_image"),
        "hint": (host.pack("nodes.host.control"), "read_hint"),
    }

    def counted(what: str, plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return plain(*args, **kwargs)

        return call

    for what, (place, name) in places.items():
        monkeypatch.setattr(place, name, counted(what, getattr(place, name)))
    parts = LoadedGraph()
    graph, image = parts.graph, parts.graph("LoadImage", image="stable_cascade_star.png")
    vision = graph("CascadeLoadImageEncoder", clip_name=networks.file_name("image_encoder"))
    seen = graph("CLIPVisionEncode", clip_vision=vision, image=image, crop="center")
    shown = graph(
        "unCLIPConditioning", conditioning=parts.text[0], clip_vision_output=seen, strength=1.0, noise_augmentation=0.0
    )
    conds = graph(
        "CascadeApplyControlNet",
        positive=shown,
        negative=parts.text[1],
        control_net=graph("CascadeLoadControlNet", control_net_name="canny.safetensors", blocks=""),
        image=edges(graph, image),
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
        apply_to="positive and negative",
    )
    sampling = parts.cascade(positive=conds[0], negative=conds[1])
    first = host.run(graph, fresh=True, latent=sampling).latent["samples"]
    once = dict(counts)
    assert min(once.values()) > 0
    graph.prompt[sampling.node]["inputs"]["seed"] = 6
    second = host.run(graph, latent=sampling).latent["samples"]
    assert relative_error(second, first) > 1e-2
    assert counts == once


def test_the_same_run_twice_is_the_same(host: Any) -> None:
    """Nothing is added to the kept residuals in place."""
    model, conds = ours(host, "stage_c"), applied(host, control(host, "small"), hint("small"), strength=2.0)
    assert torch.equal(run(model, conds), run(model, conds))


def test_the_unconditional_alone_and_the_prompt_alone(host: Any) -> None:
    model, net, image = ours(host, "stage_c"), control(host, "small"), hint("small")
    results = [
        run(model, applied(host, net, image, apply_to=which))
        for which in ("positive and negative", "positive only", "negative only")
    ]
    results.append(run(model, (conditioning(), conditioning(seed=2))))
    assert all(relative_error(a, b) > 1e-3 for i, a in enumerate(results) for b in results[:i])


def test_nets_of_different_length_add_up_whichever_comes_first(host: Any, tmp_path: Path) -> None:
    config = ControlNetConfig(in_channels=5, width=WIDTH, blocks=(1,), backbone="simple")
    save_model(filled(config, seed=1), tmp_path / "short.safetensors")
    short = host.pack("nodes.host.control").load_control(tmp_path / "short.safetensors")[0]
    model, image = ours(host, "stage_c"), hint("small")
    results = []
    for first, second in ((short, control(host, "small")), (control(host, "small"), short)):
        positive, negative = applied(host, first, image)
        results.append(run(model, applied(host, second, image, positive=positive, negative=negative)))
    assert relative_error(*results) < 1e-5
    assert relative_error(results[0], run(model, applied(host, short, image))) > 1e-3
    assert relative_error(results[0], run(model, applied(host, control(host, "small"), image))) > 1e-3


def test_lists_are_as_long_as_the_network_has_blocks(host: Any) -> None:
    made = control(host, "small").copy().set_cond_hint(hint("small").movedim(-1, 1))
    made.pre_run(ours(host, "stage_c").model, lambda percent: 1.0 - percent)
    found = made.get_control(random(*SIZE), torch.tensor([0.5]), {}, 1)
    assert [residual is not None for residual in found["input"][::-1]] == [i in BLOCKS for i in range(6)]
    assert found["input"][0].shape[:2] == (2, WIDTH)


def test_stage_b_is_left_alone(host: Any) -> None:
    """Conditionings with a ControlNet may go to Stage B as they are."""
    model = ours(host, "stage_b")
    plain = sample(model, "stage_b", conditioning(), conditioning(seed=2), steps=1)
    for net in (control(host, "small"), native_control("canny")):
        image = hint("small" if net is control(host, "small") else "canny")
        assert torch.equal(sample(model, "stage_b", *applied(host, net, image), steps=1), plain)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("canny", (1, 64, 64, 3), "reads edges; the hint that is connected is a color image. Make.*Canny Hint"),
        ("inpainting", (1, 64, 64, 3), "reads images with their mask.*Inpaint Hint .* or Outpaint Hint"),
        ("super resolution", (1, 64, 64, 3), "reads the encoder's latents.*Super Resolution Hint"),
        ("identity", (1, 64, 64, 3), "reads faces.*Identity Hint"),
        ("inpainting", (1, 6, 6, 16), "the hint that is connected is the encoder's latents"),
        ("small", (1, 6, 6, 3), "It must have 5 channels"),
    ],
)
@pytest.mark.parametrize("node", ["CascadeApplyControlNet", "ControlNetApplyAdvanced"])
def test_a_hint_of_the_wrong_kind_names_the_right_node(
    host: Any, kind: str, given: tuple[int, ...], words: str, node: str
) -> None:
    image, net = torch.rand(given, generator=torch.Generator().manual_seed(0)), control(host, kind)
    given_to = {
        "CascadeApplyControlNet": lambda: applied(host, net, image),
        "ControlNetApplyAdvanced": lambda: host.classes[node]().apply_controlnet(
            conditioning(), conditioning(), net, image, 1.0, 0.0, 1.0
        ),
    }
    with pytest.raises(host.errors.CascadeError, match=words):
        given_to[node]()


def test_a_net_for_another_stage_c(host: Any, tmp_path: Path) -> None:
    load = host.pack("nodes.host.control").load_control
    for changes, words in (
        ({"width": 32}, "width 32; this one.s is 64"),
        ({"blocks": (9,)}, "at least 10"),
    ):
        config = ControlNetConfig(**{"in_channels": 5, "width": WIDTH, "blocks": (0,), "backbone": "simple", **changes})
        save_model(filled(config), tmp_path / "other.safetensors")
        with pytest.raises(host.errors.CascadeError, match=words):
            run(ours(host, "stage_c"), applied(host, load(tmp_path / "other.safetensors")[0], hint("small")))


def test_the_hosts_own_net_for_another_stage_c(host: Any) -> None:
    other = comfy.ldm.cascade.controlnet.ControlNet(5, 32, [0], "simple").requires_grad_(False)
    adapter = comfy.controlnet.T2IAdapter(other, 5, 1, "nearest-exact")
    with pytest.raises(host.errors.CascadeError, match="made for a Stage C of width 32, this one's is 64"):
        run(ours(host, "stage_c"), applied(host, adapter, hint("small")))


def test_the_hosts_own_net_refuses_a_hint_of_another_kind(host: Any) -> None:
    with pytest.raises(
        host.errors.CascadeError, match=r"reads edges; the hint that is connected is a color image.*Canny Hint"
    ):
        applied(host, native_control("canny"), torch.rand(1, 64, 64, 3))


def test_files_of_other_kinds_are_named(host: Any, tmp_path: Path) -> None:
    load = host.pack("nodes.host.control").load_control
    others = {
        "a T2I adapter": {"body.0.block1.weight": torch.zeros(1)},
        "an SDXL ControlNet": {"input_hint_block.0.weight": torch.zeros(1), "label_emb.0.0.weight": torch.zeros(1)},
    }
    for words, tensors in others.items():
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(host.errors.CascadeError, match=words):
            load(tmp_path / "other.safetensors")
    with pytest.raises(host.errors.CascadeError, match=r"this is Stage B.*Wanted here: ControlNet"):
        load(host.models / "diffusion_models" / networks.file_name("stage_b"))


def test_blocks_that_the_file_does_not_tell(host: Any, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(network("small").state_dict(), path)
    load = host.pack("nodes.host.control").load_control
    with pytest.raises(host.errors.CascadeError, match="does not define its blocks"):
        load(path)
    made, report = load(path, BLOCKS)
    assert made.config.blocks == BLOCKS
    assert "blocks 0, 2, 3, 5" in report
    with pytest.raises(host.errors.CascadeError, match=r"do not fit"):
        load(path, (0, 2))


def test_the_report_says_what_it_is(host: Any) -> None:
    for kind, words in (
        ("canny", "reads edges, made by Canny Hint"),
        ("identity", "reads faces, made by Identity Hint"),
    ):
        control(host, kind)
        _, report = host.call("CascadeLoadControlNet", control_net_name=f"{kind}.safetensors", blocks="0, 2,3 5")
        assert words in report
        assert f"width {WIDTH}" in report
    with pytest.raises(host.errors.CascadeError, match="blocks are whole numbers"):
        host.call("CascadeLoadControlNet", control_net_name="canny.safetensors", blocks="all")


def test_a_start_after_the_end_and_no_net(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match=r"start_percent 0\.8 is after end_percent 0\.2"):
        applied(host, control(host, "small"), hint("small"), start_percent=0.8, end_percent=0.2)
    with pytest.raises(host.errors.CascadeError, match="There is no ControlNet"):
        applied(host, None, hint("small"))


def test_clones_for_other_devices(host: Any) -> None:
    if not hasattr(comfy.controlnet.ControlBase, "deepclone_multigpu"):
        pytest.skip("this ComfyUI samples on one device")
    made = control(host, "small").copy()
    clone = made.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert clone.net is not made.net
    assert made.get_instance_for_device(torch.device("cpu")) is clone
    assert len(made.get_models()) == 2
