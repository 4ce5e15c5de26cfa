"""IP-Adapter: the library's latents, the plain run at weight 0, chains, and what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade import tiny
from cascade.checkpoints import load_model, save_model
from cascade.conditioning import ImageEncoder
from cascade.diffusion import Guidance
from cascade.editing import BLOCK_WEIGHTS, box_mask
from cascade.pipelines import IPAdapterImages, Parts, RegionalPrompt, SamplingSettings, Settings, generate
from cascade.tiny import grammar
from cascade.tiny.evaluation import drawn_scenes
from tests.nodes import networks
from tests.nodes.graphs import SETTINGS
from tests.small import ip_adapter
from tests.support import relative_error

pytestmark = pytest.mark.skipif(not tiny.path(tiny.IP_ADAPTER).exists(), reason="the tiny weights are not here")

TINY = "tiny cascade (included)"
TEXT, STEPS, SIZE = "a shape, right", 4, 256
PARTS = Parts(tiny.parts())
MASK = box_mask((0, 0, 0.5, 1), 256)


@cache
def source() -> Tensor:
    """Two images [2, 3, 256, 256]."""
    scenes = [grammar.parse(text) for text in ("a large red circle on a white background, left", "a blue star")]
    return drawn_scenes([scene for scene in scenes if scene], range(2), 4)


@cache
def loaded(host: Any) -> tuple[Any, Any, Any]:
    model = host.call("CascadeLoadStageC", unet_name=TINY, weight_dtype="fp32", previewer="none")[0]
    clip = host.call("CascadeLoadTextEncoder", clip_name=TINY, weight_dtype="fp32")[0]
    return model, clip, host.call("CascadeLoadImageEncoder", clip_name=TINY)[0]


def following(host: Any, images: Tensor, model: Any = None, **changes: Any) -> Any:
    """MODEL."""
    own, _, clip_vision = loaded(host)
    given = {"weight": 1.0, "start_percent": 0.0, "end_percent": 1.0, "blocks": "all", "ip_adapter_name": TINY}
    given["block_ranges"] = "0-0.5=1"
    given |= {"model": own if model is None else model, "clip_vision": clip_vision, "image": images.movedim(1, -1)}
    return host.call("CascadeIPAdapter", **{**given, **changes})[0]


def sampled(host: Any, model: Any, batch: int = 1, positive: Any = None) -> Tensor:
    text = host.call("CascadeTextEncode", clip=loaded(host)[1], positive=TEXT, negative="")
    conds = {"positive": positive or text[0], "negative": text[1]}
    conds["latent_image"] = {"samples": torch.zeros(batch, 16, 6, 6)}
    given = {"seed": 7, "steps": STEPS, "cfg": 4.0, "shift": 2.0, **SETTINGS}
    return host.call("CascadeSampleStageC", model=model, **conds, **given)[0]["samples"]


def expected(host: Any, *images: dict[str, Any], batch: int = 1, **options: Any) -> Tensor:
    """What the library samples, of images as the host sees them, which rounds pixels to whole 255ths."""
    stage_c = SamplingSettings(steps=STEPS, guidance=Guidance(cfg=4.0), shift=2.0)
    stage_b = SamplingSettings(steps=1, guidance=Guidance(cfg=1.1), shift=1.0)
    settings = Settings(width=SIZE, height=SIZE, stage_c=stage_c, stage_b=stage_b)
    adapter = load_model(tiny.path(tiny.IP_ADAPTER), part="ip_adapter", dtype=torch.float32)
    prompts = [IPAdapterImages(adapter=adapter, **each) for each in images]
    given = {"seeds": range(7, 7 + batch), "settings": settings, "ip_adapters": prompts, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageEncoder, "hidden_states", lambda _, image: hidden_states(host, image))
        return generate(PARTS, [TEXT] * batch, **given).stage_c


def hidden_states(host: Any, images: Tensor) -> Tensor:
    seen = loaded(host)[2].encode_image(images.movedim(1, -1))
    return seen["penultimate_hidden_states"].float().clone()


@pytest.mark.parametrize(
    ("node", "library"),
    [
        ({}, {}),
        ({"weight": 0.6, "blocks": "style"}, {"weight": 0.6, "blocks": BLOCK_WEIGHTS["style"]}),
        ({"start_percent": 0.2, "end_percent": 0.7}, {"start_percent": 0.2, "end_percent": 0.7}),
        ({"mask": MASK[0]}, {"mask": MASK}),
    ],
    ids=str,
)
def test_the_node_gives_the_librarys_latents(host: Any, node: dict[str, Any], library: dict[str, Any]) -> None:
    found = sampled(host, following(host, source(), **node), batch=2)
    assert relative_error(found, expected(host, {"images": source(), **library}, batch=2)) < 1e-4


def test_several_in_a_row_add_up(host: Any) -> None:
    first, second = source()[:1], source()[1:]
    model = following(host, second, following(host, first, weight=0.4), weight=0.7)
    wanted = expected(host, {"images": first, "weight": 0.4}, {"images": second, "weight": 0.7})
    assert relative_error(sampled(host, model), wanted) < 1e-4


def test_beside_a_regional_prompt(host: Any) -> None:
    text = host.call("CascadeTextEncode", clip=loaded(host)[1], positive=TEXT, negative="")[0]
    given = {"clip": loaded(host)[1], "positive": text, "text": "a star", "strength": 0.8}
    region = host.call("CascadeRegionalPrompt", left=0.0, top=0.0, right=0.5, bottom=1.0, **given)[0]
    found = sampled(host, following(host, source()[:1]), positive=region)
    regions = [RegionalPrompt(box_mask((0, 0, 0.5, 1)), "a star")]
    assert relative_error(found, expected(host, {"images": source()[:1]}, regions=regions)) < 1e-4


def test_weight_0_is_the_plain_run_bit_for_bit(host: Any) -> None:
    plain = sampled(host, loaded(host)[0])
    assert torch.equal(sampled(host, following(host, source(), weight=0.0)), plain)
    assert relative_error(sampled(host, following(host, source())), plain) > 1e-2


def test_it_acts_in_the_hosts_own_sampler(host: Any) -> None:
    import nodes as native

    text = host.call("CascadeTextEncode", clip=loaded(host)[1], positive=TEXT, negative="")
    latent = {"samples": torch.zeros(1, 16, 6, 6)}
    settings = (5, STEPS, 4.0, "euler", "simple")
    with torch.inference_mode():
        plain, other = (
            native.KSampler().sample(model, *settings, *text[:2], latent, denoise=1.0)[0]["samples"]
            for model in (loaded(host)[0], following(host, source()))
        )
    assert relative_error(other, plain) > 1e-2


def test_bad_input(host: Any) -> None:
    for changes, message in (
        ({"clip_vision": None}, "There is no image encoder"),
        ({"mask": torch.zeros(1, 8, 8)}, "the mask of the IP-Adapter is empty"),
        ({"start_percent": 0.8, "end_percent": 0.3}, "must not be above"),
        ({"model": host.call("CascadeLoadStageB", unet_name=TINY, weight_dtype="fp32")[0]}, "This takes a Stage C"),
    ):
        with pytest.raises(host.errors.CascadeError, match=message):
            following(host, source(), **changes)


def test_a_file_for_another_stage_c_encoder_or_of_another_kind(host: Any) -> None:
    folder = host.models / "model_patches"
    folder.mkdir(exist_ok=True)
    name = "ip_adapter_of_the_test.safetensors"
    save_model(ip_adapter(networks.network("stage_c")), folder / name)
    with pytest.raises(host.errors.CascadeError, match="64 wide; this one has 10 attention blocks, 128 wide"):
        following(host, source(), ip_adapter_name=name)
    save_model(ip_adapter(load_model(tiny.path("stage_c")), encoder=24), folder / name)
    with pytest.raises(host.errors.CascadeError, match="image encoder 24 channels wide; this one is 64 wide"):
        following(host, source(), ip_adapter_name=name)
    save_model(networks.network("stage_c"), folder / name)
    with pytest.raises(host.errors.CascadeError, match="Wanted here: IP-Adapter"):
        following(host, source(), ip_adapter_name=name)
