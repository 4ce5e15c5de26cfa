"""Images as the input: image to image, masks, mixes, large images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade import models
from cascade.conditioning import StageBInputs
from cascade.diffusion import RELEASED_DIFFUSION, Guidance
from cascade.errors import InvalidImage, InvalidSettings, InvalidSize
from cascade.images import effnet_input, fit, psnr
from cascade.pipelines import (
    ImagePrompt,
    ImageToImage,
    Parts,
    SamplingSettings,
    Settings,
    StagePlan,
    Start,
    Tiles,
    compression_warning,
    decode,
    encode_stage_a,
    encode_stage_c,
    generate,
    latent_sizes,
    mix,
    reconstruct,
    sample_stage_b,
    with_short_side,
)
from cascade.pipelines.stages import _started
from tests.small import part, small_cascade
from tests.support import golden, relative_error

FEW = Settings(
    width=128,
    height=90,
    stage_c=SamplingSettings(steps=3, guidance=Guidance(cfg=2.0), shift=2.0),
    stage_b=SamplingSettings(steps=2, guidance=Guidance(cfg=1.1), shift=1.0),
)
GDF = golden("gdf")


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(small_cascade())


def image(height: int = 90, width: int = 128, seed: int = 0) -> Tensor:
    """Smooth, so that resizing it changes little."""
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.numeric
def test_a_start_is_noised_at_the_samplers_own_level_or_as_released() -> None:
    """The released image to image noises with shift 1 what it samples with shift 2."""
    latents, epsilon = torch.randn(1, 16, 5, 6), torch.randn(1, 16, 5, 6)
    at = int((GDF["t"] - 0.75).abs().argmin())
    for as_released, shift in ((False, 2), (True, 1)):
        plan: Any = StagePlan(
            stage="stage_c",
            size=(16, 5, 6),
            seeds=[0],
            settings=FEW.stage_c.with_strength(float(GDF["t"][at])),
            cond=None,
            uncond=None,
            start=Start(latents=latents, as_released=as_released),
        )
        a, b = (float(GDF[f"{name}_shift{shift}"][at]) for name in "ab")
        found, kept = _started(plan, epsilon, RELEASED_DIFFUSION)
        assert kept is None
        assert relative_error(found, a * latents + b * epsilon) < 1e-5


def test_strength_leads_from_the_image_to_the_prompt(parts: Parts) -> None:
    source = image()
    encoded = encode_stage_c(part("effnet"), source, latent_sizes(90, 128).stage_c[-2:])
    distances = [
        (
            generate(
                parts, ["a cat"], seeds=[1], source=ImageToImage(images=source, strength=strength), settings=FEW
            ).stage_c
            - encoded
        )
        .square()
        .mean()
        .item()
        for strength in (0.05, 0.4, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.1 * distances[-1]


def test_stage_b_from_the_images_own_latents_keeps_its_detail(parts: Parts) -> None:
    source = torch.rand(1, 3, 90, 128, generator=torch.Generator().manual_seed(3))
    again = decode(part("stage_a"), encode_stage_a(part("stage_a"), source))[..., :90, :128]

    def likeness(strength_b: float) -> float:
        given = ImageToImage(images=source, strength=0.3, strength_b=strength_b)
        return psnr(generate(parts, [""], seeds=[1], source=given, settings=FEW).images[0], again[0])

    assert likeness(0.1) > likeness(0.5) > likeness(1.0)


@pytest.mark.numeric
def test_outside_a_mask_the_image_is_the_source(parts: Parts) -> None:
    source, mask = torch.rand(2, 3, 90, 128), torch.zeros(1, 1, 90, 128)
    mask[..., 80:], mask[..., 70:80] = 1, 0.5
    given = ImageToImage(images=source, strength=0.9, mask=mask)
    result = generate(parts, ["a", "b"], seeds=[1, 2], source=given, settings=FEW)
    assert torch.equal(result.images[..., :70], source[..., :70])
    assert not torch.allclose(result.images[..., 80:], source[..., 80:], atol=0.05)
    alone = replace(given, images=source[1:])
    alone = generate(parts, ["b"], seeds=[2], source=alone, settings=FEW)
    assert relative_error(alone.images, result.images[1:]) < 1e-4


def test_sources_of_any_size_and_kind(parts: Parts) -> None:
    for images in (torch.rand(1, 1, 1, 1), torch.rand(1, 4, 300, 40), torch.rand(1, 3, 20, 700)):
        assert generate(parts, [""], seeds=[0], source=ImageToImage(images=images), settings=FEW).images.shape[-2:] == (
            90,
            128,
        )
    with pytest.raises(InvalidImage, match="NaN"):
        generate(
            parts, [""], seeds=[0], source=ImageToImage(images=torch.full((1, 3, 64, 64), torch.nan)), settings=FEW
        )
    with pytest.raises(ValueError, match="each image needs"):
        generate(parts, ["", ""], seeds=[0, 1], source=ImageToImage(images=image()), settings=FEW)


@pytest.mark.numeric
def test_several_images_are_varied_with_their_weights(parts: Parts) -> None:
    first, second = image(seed=1), image(seed=2)

    def vary(*weights: float) -> Tensor:
        images = [first, second][: len(weights)]
        return generate(parts, [""], seeds=[1], variation_of=images, variation_weights=weights, settings=FEW).stage_c

    alone = generate(parts, [""], seeds=[1], variation_of=first, settings=FEW).stage_c
    assert relative_error(vary(1.0), alone) < 1e-5
    # Signs, not sizes: this network has no biases and normalizes what it hears.
    results = [vary(1.0), vary(1.0, 0.5), vary(1.0, -0.5), vary(-0.5, 1.0)]
    assert all(relative_error(a, b) > 1e-3 for i, a in enumerate(results) for b in results[:i])


@pytest.mark.numeric
def test_image_prompts_act_by_their_weights(parts: Parts) -> None:
    first, second = image(seed=1), image(seed=2)

    def made(*prompts: ImagePrompt, **more: Any) -> Tensor:
        given = {"seeds": [1, 2], "prompt_images": prompts, "settings": FEW, **more}
        return generate(parts, ["a cat", ""], **given).stage_c

    plain, of_first = made(), made(ImagePrompt(images=[first]))
    for nothing in (
        ImagePrompt(images=[first, second], weights=[0, 0]),
        ImagePrompt(images=[first], strength=0.0, mask=torch.ones(1, 1, 8, 8)),
    ):
        assert torch.equal(made(nothing), plain)
        assert torch.equal(made(negative_images=[nothing]), plain)
    assert torch.equal(made(ImagePrompt(images=[first, second], weights=[1, 0])), of_first)
    both = torch.cat([first, second])
    assert relative_error(made(ImagePrompt(images=[both]))[:1], of_first[:1]) < 1e-5
    whole = made(ImagePrompt(images=[first], mask=torch.ones(1, 1, 8, 8)))
    assert relative_error(whole, of_first) < 1e-5
    late = ImagePrompt(images=[first], start_percent=0.9)
    assert relative_error(made(late), plain) < 1e-5
    results = [
        plain,
        of_first,
        made(ImagePrompt(images=[first], strength=0.5)),
        made(ImagePrompt(images=[first], noise_augmentation=0.5)),
        made(ImagePrompt(images=[first, second], combine="average")),
        made(ImagePrompt(images=[first, second], combine="subtract")),
        made(negative_images=[ImagePrompt(images=[first])]),
        made(ImagePrompt(images=[first], mask=torch.eye(8)[None, None])),
    ]
    assert all(relative_error(a, b) > 1e-3 for i, a in enumerate(results) for b in results[:i])


def test_image_prompts_that_cannot_be_are_refused(parts: Parts) -> None:
    for wrong, message in (
        ({"weights": [1.0, 2.0]}, "one weight: 1 and 2"),
        ({"images": []}, "one weight: 0 and 0"),
        ({"weights": [float("nan")]}, "must be finite numbers"),
        ({"combine": "add"}, "concat, average, subtract, got 'add'"),
    ):
        with pytest.raises(InvalidSettings, match=message):
            ImagePrompt(**{"images": [image()], **wrong})
    wanted = ImagePrompt(images=[image()], strength=0.5)
    with pytest.raises(InvalidSettings, match="so does a style"):
        generate(parts, ["", ""], seeds=[1, 2], prompt_images=[wanted], style_aligned=1.0, settings=FEW)


@pytest.mark.numeric
def test_a_mix_goes_from_one_image_to_the_other(parts: Parts) -> None:
    first, second = image(seed=1), torch.rand(1, 3, 60, 60)
    given = {"settings": FEW, "strength": 0.3, "seed": 4}
    result = mix(parts, first, second, [0.0, 0.5, 1.0], **given)
    assert result.images.shape == (3, 3, 90, 128)
    for place, end in ((0, first), (2, second)):
        fitted = fit(end, 90, 128)
        source = ImageToImage(images=fitted, strength=0.3)
        alone = generate(parts, [""], seeds=[4], source=source, variation_of=fitted, settings=FEW)
        assert relative_error(result.stage_c[place], alone.stage_c[0]) < 1e-5
    steps = [(a - b).norm() for a, b in ((0, 1), (1, 2), (0, 2)) for a, b in [(result.stage_c[a], result.stage_c[b])]]
    assert max(steps[:2]) < steps[2]


def test_enlarging_runs_stage_c_twice_and_keeps_the_image(parts: Parts) -> None:
    steps: list[tuple[str, int, int]] = []
    large = replace(FEW, enlarge=2.0, enlarge_strength=0.05)
    result = generate(
        parts, ["a cat"], seeds=[1], settings=large, on_progress=lambda stage, i, n, _: steps.append((stage, i, n))
    )
    assert result.images.shape == (1, 3, 180, 256)
    assert [step for step in steps if step[0] == "stage_c"] == [("stage_c", i, 6) for i in range(6)]
    small = generate(parts, ["a cat"], seeds=[1], settings=FEW).stage_c
    enlarged = torch.nn.functional.interpolate(small, result.stage_c.shape[-2:], mode="bilinear")
    assert (result.stage_c - enlarged).square().mean() < 0.1 * small.square().mean()


def random_inputs(batch: int = 1) -> tuple[StageBInputs, StageBInputs]:
    generator = torch.Generator().manual_seed(1)
    effnet = torch.randn(batch, 16, 6, 9, generator=generator)
    clip = torch.randn(batch, 1, part("stage_b").config.clip, generator=generator)
    return StageBInputs(effnet, clip), StageBInputs(torch.zeros_like(effnet), clip * 0)


@pytest.mark.numeric
@torch.no_grad()
def test_stage_b_in_tiles_sees_its_own_part_of_stage_c() -> None:
    net: Any = part("stage_b")
    inputs, empty = random_inputs(2)
    # Rescaled guidance would measure the whole image.
    settings = replace(FEW.stage_b, guidance=Guidance(cfg=1.0))

    def run(tiles: Tiles | None, stage_c: Tensor = inputs.stage_c) -> Tensor:
        given, size = replace(inputs, stage_c=stage_c), (4, 64, 96)
        plan = StagePlan(
            stage="stage_b", size=size, seeds=[1, 2], settings=settings, cond=given, uncond=empty, tiles=tiles
        )
        return sample_stage_b(net, plan)

    whole, tiled = run(None), run(Tiles(128, 64))
    assert torch.equal(run(Tiles(384, 64)), whole)
    assert tiled.shape == whole.shape
    # Attention and normalization see the tile alone, so it is near, not the same.
    assert (tiled - whole).square().mean() < 0.1 * whole.square().mean()
    changed = inputs.stage_c.clone()
    changed[..., 6:] += 1
    other = run(Tiles(128, 32), changed) - run(Tiles(128, 32))
    assert torch.equal(other[..., :16], torch.zeros_like(other[..., :16]))
    assert other[..., -30:].abs().max() > 1e-3


@pytest.mark.numeric
@torch.no_grad()
@pytest.mark.parametrize("size", [(256, 320), (301, 450)])
def test_stage_a_in_tiles_is_stage_a(size: tuple[int, int]) -> None:
    net: Any = part("stage_a")
    images = torch.rand(2, 3, *size)
    latents = encode_stage_a(net, images)
    assert relative_error(encode_stage_a(net, images, tile_size=128), latents) < 1e-5
    assert relative_error(decode(net, latents, tile_size=128), decode(net, latents)) < 1e-5


@pytest.mark.numeric
@torch.no_grad()
def test_the_released_stage_a_reaches_no_farther_than_its_config_says() -> None:
    net = models.initialize(models.StageA(replace(models.STAGE_A, width=16)))
    for name, parameter in net.named_parameters():
        if "gammas" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    net.eval()
    latents, images = torch.randn(1, 4, 40, 48), torch.rand(1, 3, 150, 200)
    tiled = decode(net, latents, tile_size=4 * 36)
    assert float((tiled - decode(net, latents)).abs().max()) < 1 / 255 / 10
    assert relative_error(encode_stage_a(net, images, 96), encode_stage_a(net, images)) < 1e-5


@torch.no_grad()
def test_a_large_reconstruction_in_tiles(parts: Parts) -> None:
    images = image(256, 320)
    whole, tiled = (
        reconstruct(parts, images, seeds=[0], settings=FEW.stage_b, tiles=tiles) for tiles in (None, Tiles(128, 64))
    )
    assert tiled.images.shape == images.shape
    assert psnr(tiled.images[0], whole.images[0]) > 20


def test_compression_is_chosen_and_warned_of(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    images = image(256, 256)
    for compression, side in ((32.0, 8), (42.67, 6), (64.0, 4)):
        result = reconstruct(parts, images, seeds=[0], settings=FEW.stage_b, compression=compression)
        assert result.stage_c.shape == (1, 16, side, side)
    assert caplog.text == ""
    reconstruct(parts, images, seeds=[0], settings=FEW.stage_b, compression=128.0)
    assert "compression of 128; Stage B was trained with 32 to 64. Sizes that fit: 6 x 6" in caplog.text
    assert compression_warning((24, 24), (256, 256)) is None
    assert compression_warning((16, 24, 48), (4, 256, 512)) is None
    assert "compression of 171" in str(compression_warning((24, 24), (1024, 1024)))


def test_the_headline_at_full_size() -> None:
    """4 x 3 x 1024 x 1024 -> 4 x 16 x 24 x 24 -> back, through the released sizes without their weights."""
    images = torch.zeros(1, 3, 1024, 1024).expand(4, -1, -1, -1)
    seen = effnet_input(images).to("meta")
    with torch.device("meta"):
        effnet = models.EffnetEncoder(models.EFFNET_V2_S)(seen)
        assert effnet.shape == (4, 16, 24, 24)
        noise, r = torch.zeros(4, *latent_sizes(1024, 1024).stage_b), torch.zeros(4)
        stage_b = models.StageB(models.STAGE_B_1_5B)(noise, r, effnet, torch.zeros(4, 1, 1280))
        assert stage_b.shape == (4, 4, 256, 256)
        assert models.StageA(models.STAGE_A).decode(stage_b).shape == images.shape


def test_a_short_side_gives_the_size() -> None:
    assert with_short_side(1, 1, 1024) == (1024, 1024)
    assert with_short_side(3000, 4000, 1024) == (1024, 1365)
    with pytest.raises(InvalidSize, match="width must be 32 to 16384"):
        with_short_side(100, 20_000, 1024)
