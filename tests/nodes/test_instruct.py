"""Edit by Instruction: the library's images, the plain run at strength 0, and what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade import tiny
from cascade.adapters import read_instruct, save_instruct
from cascade.diffusion import Guidance
from cascade.pipelines import Parts, SamplingSettings, Settings, encode_stage_c, follow
from cascade.tiny import grammar
from cascade.tiny.evaluation import drawn_scenes
from tests.nodes import networks
from tests.nodes.graphs import SETTINGS
from tests.small import instruct_network
from tests.support import relative_error

pytestmark = pytest.mark.skipif(not tiny.path(tiny.INSTRUCT).exists(), reason="the tiny weights are not here")

TINY = "tiny cascade (included)"
TEXT, STEPS, SIZE = "make it green", 4, 256
PARTS = Parts(tiny.parts())


@cache
def source(batch: int) -> Tensor:
    scenes = [grammar.parse(text) for text in ("a large red circle on a white background, left", "a blue star")]
    return drawn_scenes([scene for scene in scenes if scene][:batch], range(batch), 4)


@cache
@torch.no_grad()
def latents(batch: int) -> dict[str, Tensor]:
    return {"samples": PARTS.use("effnet", lambda net: encode_stage_c(net, source(batch), (6, 6)))}


@cache
def loaded(host: Any) -> tuple[Any, Any]:
    model = host.call("CascadeLoadStageC", unet_name=TINY, weight_dtype="fp32", previewer="none")[0]
    return model, host.call("CascadeLoadTextEncoder", clip_name=TINY, weight_dtype="fp32")[0]


def told(host: Any, batch: int = 1, **changes: Any) -> tuple[Any, Any, Any]:
    """MODEL and both CONDITIONINGs."""
    model, clip = loaded(host)
    given = {"instruct_name": TINY, "instruction": TEXT, "image_cfg": 1.5, "strength": 1.0, **changes}
    return host.call("CascadeEditByInstruction", **{"model": model, "clip": clip, "stage_c": latents(batch), **given})


def sampled(host: Any, model: Any, positive: Any, negative: Any, latent: Any, cfg: float = 4.0) -> Tensor:
    given = {"seed": 7, "steps": STEPS, "cfg": cfg, "shift": 2.0, **SETTINGS}
    conds = {"positive": positive, "negative": negative, "latent_image": latent}
    return host.call("CascadeSampleStageC", model=model, **conds, **given)[0]["samples"]


def edited(host: Any, batch: int = 1, cfg: float = 4.0, **changes: Any) -> Tensor:
    return sampled(host, *told(host, batch, **changes), empty(batch), cfg)


def empty(batch: int = 1) -> dict[str, Tensor]:
    """What the library starts from."""
    return {"samples": torch.zeros(batch, 16, 6, 6)}


def expected(batch: int = 1, cfg: float = 4.0, image_cfg: float = 1.5, strength: float = 1.0) -> Tensor:
    stage_c = SamplingSettings(steps=STEPS, guidance=Guidance(cfg=cfg), shift=2.0)
    stage_b = SamplingSettings(steps=1, guidance=Guidance(cfg=1.1), shift=1.0)
    settings = Settings(width=SIZE, height=SIZE, stage_c=stage_c, stage_b=stage_b)
    network, seeds = read_instruct(tiny.path(tiny.INSTRUCT)), range(7, 7 + batch)
    options = {"image_cfg": image_cfg, "strength": strength, "settings": settings}
    return follow(PARTS, source(batch), TEXT, network, seeds=seeds, **options).stage_c


@pytest.mark.parametrize(
    "options",
    [{}, {"batch": 2}, {"image_cfg": 1.0}, {"image_cfg": 2.5, "cfg": 3.0}, {"strength": 0.6}, {"cfg": 1.0}],
    ids=str,
)
def test_the_node_gives_the_librarys_latents(host: Any, options: dict[str, Any]) -> None:
    assert relative_error(edited(host, **options), expected(**options)) < 1e-4


def test_strength_0_is_the_plain_run_bit_for_bit(host: Any) -> None:
    model, clip = loaded(host)
    text = host.call("CascadeTextEncode", clip=clip, positive=TEXT, negative="")
    plain = sampled(host, model, *text, empty())
    assert torch.equal(edited(host, strength=0.0, image_cfg=2.0), plain)
    assert relative_error(edited(host), plain) > 1e-2


def test_both_scales_act_in_the_hosts_own_sampler(host: Any) -> None:
    import nodes as native

    def made(image_cfg: float) -> Tensor:
        model, positive, negative = told(host, image_cfg=image_cfg)
        given = (5, STEPS, 4.0, "euler", "simple", positive, negative, latents(1))
        return native.KSampler().sample(model, *given, denoise=1.0)[0]["samples"]

    with torch.inference_mode():
        assert relative_error(made(3.0), made(1.0)) > 1e-3


def test_latents_of_another_size_than_the_samplers(host: Any) -> None:
    other = {"samples": torch.zeros(1, 16, 6, 8)}
    with pytest.raises(host.errors.CascadeError, match="its stage_c is 6 x 6, and the sampler's latent_image 6 x 8"):
        sampled(host, *told(host), other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": " "}, "the instruction is empty"),
        ({"clip": None}, "There is no text encoder"),
        ({"stage_c": {"samples": torch.zeros(1, 4, 64, 64)}}, "This takes Stage C's latents"),
    ],
)
def test_bad_input(host: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(host.errors.CascadeError, match=message):
        told(host, **changes)


def test_a_file_for_another_stage_c_or_of_another_kind(host: Any) -> None:
    folder = host.models / "controlnet"
    folder.mkdir(exist_ok=True)
    save_instruct(instruct_network(networks.network("stage_c")), folder / "instruct_of_the_test.safetensors")
    with pytest.raises(host.errors.CascadeError, match=r"made for a Stage C 64 wide .*this one is 128 wide"):
        told(host, instruct_name="instruct_of_the_test.safetensors")
    with pytest.raises(host.errors.CascadeError, match="this is an instruct network"):
        host.call("CascadeLoadControlNet", control_net_name="instruct_of_the_test.safetensors", blocks="")
