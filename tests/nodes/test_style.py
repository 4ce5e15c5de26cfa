"""Style nodes: the library's references and control on a real host, with our samplers and ComfyUI's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascade.checkpoints import StyleDescriptorConfig, save_model
from cascade.conditioning import ImageEncoder, StageCInputs, TextEmbedding
from cascade.diffusion import Guidance, SamplingSettings, SeededNoise
from cascade.editing import ControlSteps, References, StyleAligned
from cascade.images import fit
from cascade.pipelines import Start
from cascade.pipelines.stages import encode_stage_c
from cascade.pipelines.style import fitted_mask, look_of, masked, style_control
from tests.nodes import model_pairs, networks
from tests.nodes.networks import file_name, library_sample, random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, coder, conditioning, model, stage_c
from tests.support import relative_error

STYLE, CONTENT = (torch.rand(1, 96, 64, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
MASK = torch.cat([torch.ones(1, 8, 12), torch.zeros(1, 8, 12)], dim=1)
LATENTS = 100 * random(2, 16, 5, 6, seed=4)
PLACE = {"start_percent": 0.0, "end_percent": 1.0}
LEARNING_RATE = 0.02
"""Adam moves a value whose gradient is only rounding by the whole rate: in values of 100 the published 0.1 is seen in
the fourth digit."""
STEERING = ControlSteps(steps=2, learning_rate=LEARNING_RATE)
CONTROL = {
    "sampler_name": "ddpm",
    "style_steps": 2,
    "learning_rate": LEARNING_RATE,
    "style_weight": 1.0,
    "content_weight": 1.0,
    "pull": 1.0,
    "end_percent": 1.0,
    "descriptor": "image encoder (clip_vision)",
}


def clip_vision(host: Any) -> Any:
    return host.call("CascadeLoadImageEncoder", clip_name=file_name("image_encoder"))[0]


def reference(host: Any, **changes: Any) -> Any:
    given = {"model": model(host, "stage_c"), "clip_vision": clip_vision(host), "style": STYLE, "weight": 1.0, **PLACE}
    return host.call("CascadeStyleReference", **{**given, **changes})[0]


def sampled(host: Any, net: Any) -> Tensor:
    """Two images from others: at the level of pure noise the random network makes rounding larger."""
    return stage_c(host, latent_image={"samples": LATENTS}, denoise=0.5, model=net)


def pixels(image: Tensor) -> Tensor:
    return image.movedim(-1, 1)


@torch.no_grad()
def embedded(image: Tensor, mask: Tensor | None = None) -> Tensor:
    return ImageEncoder(networks.network("image_encoder")).encode(masked(pixels(image), mask))


def library(attention: Any, **plan: Any) -> Tensor:
    cond = StageCInputs.without_image(TextEmbedding.join([POSITIVE] * 2), networks.IMAGE)
    given = {
        "size": (16, 5, 6),
        "seeds": [7, 8],
        "settings": SamplingSettings(steps=4, shift=2.0, guidance=Guidance(cfg=4.0)).with_strength(0.5),
        "start": Start(latents=LATENTS),
    }
    return library_sample("stage_c", attention.inputs(cond), NEGATIVE, attention=attention, **{**given, **plan})


def test_references_are_the_librarys(host: Any) -> None:
    style, content = embedded(STYLE), embedded(CONTENT)
    assert relative_error(sampled(host, reference(host)), library(References(style=style))) < 1e-4
    half = sampled(host, reference(host, content=CONTENT, weight=0.5, end_percent=0.8))
    acting = References(style=style, content=content, weight=0.5, end_percent=0.8)
    assert relative_error(half, library(acting)) < 1e-4
    part = sampled(host, reference(host, content=CONTENT, content_mask=MASK))
    expected = library(References(style=style, content=embedded(CONTENT, MASK[None])))
    assert relative_error(part, expected) < 1e-4
    assert relative_error(part, sampled(host, reference(host, content=CONTENT))) > 1e-4
    alone = sampled(host, reference(host, style=None, content=CONTENT))
    assert relative_error(alone, library(References(content=content))) < 1e-4


def test_a_style_for_each_image(host: Any) -> None:
    found = sampled(host, reference(host, style=torch.cat([STYLE, CONTENT])))
    one, other = (sampled(host, reference(host, style=style)) for style in (STYLE, CONTENT))
    assert relative_error(found, torch.stack([one[0], other[1]])) < 1e-4
    with pytest.raises(host.errors.InvalidSettings, match="2 references for 1 images"):
        stage_c(host, model=reference(host, style=torch.cat([STYLE, CONTENT])))


def test_a_shared_style_is_the_librarys(host: Any) -> None:
    net = host.call("CascadeStyleAligned", model=model(host, "stage_c"), weight=0.7, **PLACE)[0]
    found, plain = sampled(host, net), sampled(host, model(host, "stage_c"))
    assert relative_error(found, library(StyleAligned(weight=0.7))) < 1e-4
    assert relative_error(found[:1], plain[:1]) < 1e-4
    assert relative_error(found[1:], plain[1:]) > 1e-3


def test_weight_0_changes_no_bit(host: Any) -> None:
    plain = stage_c(host, batch=2)
    assert torch.equal(stage_c(host, batch=2, model=reference(host, weight=0.0)), plain)
    aligned = host.call("CascadeStyleAligned", model=model(host, "stage_c"), weight=0.0, **PLACE)[0]
    assert torch.equal(stage_c(host, batch=2, model=aligned), plain)


def ksampler(host: Any, net: Any, batch_index: tuple[int, ...] = (0, 1)) -> Tensor:
    """ComfyUI's own."""
    latent = {"samples": torch.zeros(len(batch_index), 16, 5, 6), "batch_index": list(batch_index)}
    settings = {"seed": 7, "steps": 4, "cfg": 4.0, "sampler_name": "ddim", "scheduler": "simple", "denoise": 1.0}
    given = {"positive": conditioning(POSITIVE), "negative": conditioning(NEGATIVE), "latent_image": latent}
    [out] = host.classes["KSampler"]().sample(model=net, **given, **settings)
    return out["samples"]


def test_references_act_with_comfyuis_sampler(host: Any) -> None:
    net = reference(host)
    together = ksampler(host, net)
    assert relative_error(together, ksampler(host, model(host, "stage_c"))) > 1e-2
    assert relative_error(ksampler(host, net, (1,)), together[1:]) < 1e-3


class LibrarysNoise:
    """A NOISE of ComfyUI: the library's for these seeds."""

    seed = 7

    def generate_noise(self, latent: Any) -> Tensor:
        return SeededNoise([7, 8], "stage_c").start(16, 5, 6)


def steered(host: Any, net: Any, **changes: Any) -> Tensor:
    given = {"encoder": coder(host), "clip_vision": clip_vision(host), "style": STYLE}
    sampler = host.call("CascadeStyleControl", **{**given, **CONTROL, **changes})[0]
    conds = {"positive": conditioning(POSITIVE), "negative": conditioning(NEGATIVE)}
    guider = host.call("CascadeGuider", model=net, cfg=4.0, **conds)[0]
    sigmas = host.call("CascadeSigmas", steps=4, shift=2.0, start_percent=0.5, end_percent=1.0)[0]
    parts = {"noise": LibrarysNoise(), "guider": guider, "sampler": sampler, "sigmas": sigmas}
    with torch.inference_mode():  # as the host runs nodes
        found = host.call("SamplerCustomAdvanced", latent_image={"samples": LATENTS}, **parts)
    return found[0]["samples"].clone()


@torch.no_grad()
def library_steered(net: nn.Module, control: ControlSteps, content: bool) -> Tensor:
    """The library's run with references, steered by what a network sees."""
    size, images = (216, 256), [STYLE, CONTENT] if content else [STYLE]
    effnet: Any = networks.network("effnet")
    latents = encode_stage_c(effnet, torch.cat([fit(pixels(image), *size) for image in images]), (5, 6))
    mask = fitted_mask(MASK[None], pixels(CONTENT), size) if content else None
    steering = style_control(networks.network("previewer"), look_of(net), latents, mask, control)
    acting = References(style=embedded(STYLE), content=embedded(CONTENT, MASK[None]) if content else None)
    settings = SamplingSettings(steps=4, shift=2.0, start_percent=0.5, guidance=Guidance(cfg=4.0))
    return library(acting, steering=steering, settings=settings)


@pytest.mark.parametrize("content", [False, True])
def test_steered_runs_are_the_librarys(host: Any, content: bool) -> None:
    more = {"content": CONTENT, "content_mask": MASK} if content else {}
    found = steered(host, reference(host, **more), **more)
    expected = library_steered(networks.network("image_encoder"), STEERING, content)
    assert relative_error(found, expected) < 1e-4
    assert relative_error(found, steered(host, reference(host, **more), **more, style_steps=0)) > 1e-5


def test_a_style_descriptor_of_the_users(host: Any) -> None:
    torch.manual_seed(0)
    net = StyleDescriptorConfig(
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,
        projection_dim=8,
        image_size=28,
    ).network()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_model(net.requires_grad_(False), host.models / "clip_vision" / "descriptor.safetensors")
    found = steered(host, reference(host), descriptor="descriptor.safetensors")
    assert relative_error(found, library_steered(net, STEERING, False)) < 1e-4
    with pytest.raises(host.errors.IncompatibleCheckpoint, match="Wanted here: Style descriptor"):
        steered(host, reference(host), descriptor=file_name("image_encoder"))


def test_what_a_mask_keeps_is_not_steered(host: Any) -> None:
    given = {"encoder": coder(host), "clip_vision": clip_vision(host), "style": STYLE}
    sampler = host.call("CascadeStyleControl", **{**given, **CONTROL})[0]
    conds = {"positive": conditioning(POSITIVE), "negative": conditioning(NEGATIVE)}
    guider = host.call("CascadeGuider", model=model(host, "stage_c"), cfg=4.0, **conds)[0]
    sigmas = host.call("CascadeSigmas", steps=4, shift=2.0, start_percent=0.5, end_percent=1.0)[0]
    mask = torch.zeros(1, 1, 5, 6)
    mask[..., 3:] = 1
    latent = {"samples": LATENTS, "noise_mask": mask}
    parts = {"noise": LibrarysNoise(), "guider": guider, "sampler": sampler, "sigmas": sigmas}
    found = host.call("SamplerCustomAdvanced", latent_image=latent, **parts)[0]["samples"]
    assert relative_error(found[..., :3], LATENTS[..., :3]) < 1e-5
    assert relative_error(found[..., 3:], LATENTS[..., 3:]) > 1e-2


def test_what_cannot_be_followed_is_refused(host: Any) -> None:
    errors = host.errors
    with pytest.raises(errors.InvalidSettings, match="use one of them"):
        reference(host, model=reference(host))
    with pytest.raises(errors.CascadeError, match="takes a Stage C"):
        reference(host, model=model(host, "stage_b"))
    with pytest.raises(errors.CascadeError, match="loaded by ComfyUI's own node"):
        reference(host, model=model_pairs.native("stage_c"))
    with pytest.raises(errors.MissingPart, match="no image encoder"):
        reference(host, clip_vision=None)
    with pytest.raises(errors.InvalidSettings, match="needs the content"):
        reference(host, content_mask=MASK)
    with pytest.raises(errors.InvalidSettings, match="is empty"):
        reference(host, content=CONTENT, content_mask=0 * MASK)
    with pytest.raises(errors.InvalidSettings, match="there are 2 images"):
        steered(host, model(host, "stage_c"), style=torch.cat([STYLE, CONTENT]))
    with pytest.raises(errors.CascadeError, match="both the encoder and the previewer"):
        steered(host, model(host, "stage_c"), encoder=coder(host, previewer="none"))


def test_regions_and_a_style_are_not_for_one_run(host: Any) -> None:
    from tests.nodes.test_regions import LEFT, region

    with pytest.raises(host.errors.InvalidSettings, match="Regional prompts"):
        stage_c(host, model=reference(host), positive=region(host, LEFT))
