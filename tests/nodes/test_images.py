"""Images as the input: our nodes with each other and with the host's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import ImageEncoder, StageBInputs, StageCInputs
from cascade.diffusion import Guidance, slerp
from cascade.pipelines import (
    SamplingSettings,
    Start,
    Tiles,
    encode_effnet,
    encode_stage_a,
    encode_stage_c,
    latent_sizes,
)
from tests.nodes import networks
from tests.nodes.graphs import OPTIONS, SETTINGS, LoadedGraph
from tests.nodes.hosting import Failed, Graph
from tests.nodes.networks import file_name, library_sample, random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, coder, conditioning, images, model, stage_a, stage_b, stage_c
from tests.support import relative_error

SHORT, OWN = "short side (image to image)", "own size (reconstruction)"
SCALE = networks.CONFIGS["stage_a"].scale_factor


def encode(host: Any, image: Tensor, resize_mode: str = SHORT, short_side: int = 256, **more: Any) -> Any:
    given = {"image": image, "encoder": coder(host), "resize_mode": resize_mode, "short_side": short_side, **more}
    return host.call("CascadeEncodeImage", **given)


def test_an_image_is_encoded_as_the_library_does_it(host: Any) -> None:
    image = images(200, 300, batch=2)
    before = image.clone()
    small, large, seen = encode(host, image, vae=stage_a(host))
    assert seen.shape == (2, 256, 384, 3)
    net: Any = networks.network("effnet")
    assert relative_error(small["samples"], encode_stage_c(net, image.movedim(-1, 1), (6, 9))) < 1e-4
    decoder: Any = networks.network("stage_a")
    assert relative_error(large["samples"], encode_stage_a(decoder, seen.movedim(-1, 1)) * SCALE) < 1e-4
    assert torch.equal(image, before)


def test_an_image_keeps_its_own_size_for_reconstruction(host: Any) -> None:
    image = images(301, 450)
    small, large, seen = encode(host, image, resize_mode=OWN, vae=stage_a(host))
    assert torch.equal(seen, image)
    assert large["samples"].shape == (1, 4, 76, 113)
    net: Any = networks.network("effnet")
    assert relative_error(small["samples"], encode_effnet(net, image.movedim(-1, 1))) < 1e-4
    assert not encode(host, image)[1]["samples"].any()


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 40, 60, 1), (2, 40, 60, 4), (1, 60, 600, 3)])
def test_images_of_any_kind(host: Any, shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    small, large, seen = encode(host, image, short_side=128, vae=stage_a(host))
    sizes = latent_sizes(*seen.shape[1:3])
    assert min(seen.shape[1:3]) == 128
    assert seen.shape[-1] == 3
    assert small["samples"].shape == (shape[0], *sizes.stage_c)
    assert large["samples"].shape == (shape[0], *sizes.stage_b)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(0, 8, 8, 3), "no image"),
        (torch.full((1, 8, 8, 3), torch.nan), "NaN or infinity"),
        (torch.zeros(1, 64, 20_000, 3), "width must be 32 to 16384"),
        (torch.zeros(1, 8, 8, 7), "1 to 4 channels"),
    ],
)
def test_what_is_no_image_is_said(host: Any, image: Tensor, message: str) -> None:
    with pytest.raises(host.errors.CascadeError, match=message):
        encode(host, image)


def test_masks_of_any_size_mark_what_is_drawn(host: Any) -> None:
    image, spot = images(256, 256), torch.zeros(1, 64, 64)
    spot[0, 10, 10] = 0.5
    small, large, _ = encode(host, image, mask=spot)
    assert small["noise_mask"].shape == (1, 1, 6, 6)
    assert large["noise_mask"].shape == (1, 1, 64, 64)
    assert small["noise_mask"].unique().tolist() == [0, 0.5]
    with pytest.raises(host.errors.CascadeError, match=r"The mask is empty.*invert"):
        encode(host, image, mask=torch.zeros(1, 64, 64))


def test_the_wrong_vae_is_explained(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match="connect the encoder and previewer"):
        host.call("CascadeEncodeImage", image=images(), encoder=stage_a(host), resize_mode=SHORT, short_side=256)
    with pytest.raises(host.errors.CascadeError, match="connect Stage A"):
        encode(host, images(), vae=coder(host))


def library_start(as_released: bool, sampler: str = "ddpm", mask: Tensor | None = None) -> Tensor:
    latents = random(1, 16, 5, 6, seed=20)
    inputs = StageCInputs.without_image(POSITIVE, networks.IMAGE)
    settings = SamplingSettings(steps=4, shift=2.0, sampler_name=sampler).with_strength(0.7)
    start = Start(latents=latents, as_released=as_released, mask=mask)
    return library_sample("stage_c", inputs, NEGATIVE, size=(16, 5, 6), seeds=[7], settings=settings, start=start)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize(("noise_level", "as_released"), [("matches denoise", False), ("as released", True)])
def test_image_to_image_is_the_librarys(host: Any, sampler: str, noise_level: str, as_released: bool) -> None:
    latent = {"samples": random(1, 16, 5, 6, seed=20)}
    found = stage_c(host, latent_image=latent, denoise=0.7, img2img_noise_level=noise_level, sampler_name=sampler)
    assert relative_error(found, library_start(as_released, sampler)) < 1e-3


@pytest.mark.parametrize("noise_level", ["matches denoise", "as released"])
def test_soft_masks_are_the_librarys(host: Any, noise_level: str) -> None:
    mask = torch.zeros(1, 1, 5, 6)
    mask[..., 2:4], mask[..., 4:] = 0.5, 1
    latent = {"samples": random(1, 16, 5, 6, seed=20), "noise_mask": mask}
    found = stage_c(host, latent_image=latent, denoise=0.7, img2img_noise_level=noise_level)
    assert relative_error(found[..., :2], latent["samples"][..., :2]) < 1e-5
    assert relative_error(found, library_start(noise_level == "as released", mask=mask)) < 1e-3


def test_the_released_noise_level_changes_nothing_from_noise_alone(host: Any) -> None:
    assert relative_error(stage_c(host, img2img_noise_level="as released"), stage_c(host)) < 1e-5


def test_stage_b_in_tiles_is_the_librarys(host: Any) -> None:
    small, empty = random(2, 16, 6, 12), torch.zeros(2, 4, 64, 128)
    inputs = StageBInputs(small, POSITIVE.expand(2).pooled)
    expected = library_sample(
        "stage_b",
        inputs,
        NEGATIVE,
        size=(4, 64, 128),
        seeds=[7, 8],
        settings=SamplingSettings(steps=3, guidance=Guidance(cfg=1.1)),
        tiles=Tiles(256, 64),
    )
    given = {"latent_image": {"samples": empty}, "tile_size": 256, "overlap": 64}
    tiled = stage_b(host, small, tiling="always", **given)
    whole = stage_b(host, small, **given)
    assert relative_error(tiled, expected * SCALE) < 1e-3
    assert 1e-3 < relative_error(tiled, whole) < 0.5
    assert torch.equal(stage_b(host, small, tiling="auto", **given), whole)
    assert torch.equal(stage_b(host, small, tiling="always", latent_image={"samples": empty}), whole)


def test_tiles_make_room_for_a_tile_alone(host: Any) -> None:
    asked: list[Any] = []
    tiling, tiles = host.pack("nodes.host.tiling"), host.pack("cascade.pipelines").Tiles
    tiled = tiling.tiled(model(host, "stage_b"), tiles(256, 64))
    calls = tiled.model_options["model_function_wrapper"]
    calls.prepare(lambda model, shape, conds: asked.append(shape), tiled, (1, 4, 1024, 40), [])
    assert asked == [[1, 4, 64, 40]]
    with pytest.raises(ValueError, match="at most half"):
        tiles(256, 192)


def test_another_wrapper_of_the_model_still_acts(host: Any) -> None:
    sizes: list[int] = []

    def note(apply: Any, args: Any) -> Tensor:
        sizes.append(args["input"].shape[-1])
        return apply(args["input"], args["timestep"], **args["c"])

    wrapped = model(host, "stage_b").clone()
    wrapped.set_model_unet_function_wrapper(note)
    latent = {"samples": torch.zeros(1, 4, 64, 128)}
    stage_b(host, random(1, 16, 6, 12), model=wrapped, latent_image=latent, tiling="always", tile_size=256, overlap=64)
    assert sizes
    assert max(sizes) < 96


def test_a_compression_never_trained_is_told(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    stage_b(host, random(1, 16, 5, 6))
    assert "compression" not in caplog.text
    stage_b(host, random(1, 16, 2, 2), latent_image={"samples": torch.zeros(1, 4, 64, 64)}, steps=1)
    assert "compression of 128; Stage B was trained with 32 to 64" in caplog.text


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_stage_a_in_tiles_is_the_same_to_less_than_a_255th(host: Any, dtype: str) -> None:
    """In our node and in the host's."""
    vae = stage_a(host, dtype)
    latent = torch.randn(2, 4, 150, 110)
    with torch.inference_mode():
        whole = vae.decode(latent)
        for tiled in (
            vae.decode_tiled(latent, tile_x=64, tile_y=64, overlap=8),
            host.call("CascadeDecode", samples={"samples": latent}, vae=vae, tiling="always", tile_size=256)[0],
        ):
            assert float((tiled - whole).abs().max()) < 1 / 255
        image = images(300, 420)
        assert relative_error(vae.encode_tiled(image, tile_x=128, tile_y=128, overlap=16), vae.encode(image)) < 1e-2
    with torch.no_grad():
        expected = networks.network("stage_a").decode(latent / SCALE).clamp(0, 1).movedim(1, -1)
    assert dtype != "fp32" or float((whole - expected).abs().max()) < 1e-4


def test_tiles_move_the_progress_bar(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    autoencoders = host.pack("nodes.host.autoencoders")
    monkeypatch.setattr(
        autoencoders.comfy.utils.ProgressBar, "update_absolute", lambda _self, value, total: told.append((value, total))
    )
    latent = {"samples": torch.randn(2, 4, 150, 40)}
    host.call("CascadeDecode", samples=latent, vae=stage_a(host, "fp32"), tiling="always", tile_size=256)
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    assert len(told) >= 4


def mix(host: Any, first: Tensor, second: Tensor, **changes: Any) -> Any:
    given = {"blend_factor": 0.5, "blend_mode": "slerp", "frames": 1, **changes}
    return host.call("CascadeMixLatents", samples1={"samples": first}, samples2={"samples": second}, **given)[0]


def test_latents_are_mixed(host: Any) -> None:
    first, second = random(1, 16, 6, 6), random(1, 16, 6, 6, seed=2)
    assert relative_error(mix(host, first, second)["samples"], slerp(first, second, 0.5)) < 1e-5
    assert (
        relative_error(
            mix(host, first, second, blend_factor=0.25, blend_mode="lerp")["samples"], 0.75 * first + 0.25 * second
        )
        < 1e-5
    )
    assert mix(host, first.expand(3, -1, -1, -1), random(1, 16, 4, 9))["samples"].shape == (3, 16, 6, 6)
    steps = mix(host, first, second, frames=5)
    assert steps["samples"].shape == (5, 16, 6, 6)
    assert steps["batch_index"] == [0] * 5
    assert relative_error(steps["samples"][:1], first) < 1e-5
    assert relative_error(steps["samples"][4:], second) < 1e-5
    large = mix(host, random(1, 4, 16, 16), random(1, 4, 16, 16, seed=2))
    assert large["samples"].shape == (1, 4, 16, 16)
    with pytest.raises(host.errors.CascadeError, match="Stage C's latents, which have 16 channels; these have 4"):
        mix(host, first, random(1, 4, 6, 6))
    with pytest.raises(host.errors.CascadeError, match="another model's"):
        mix(host, random(1, 8, 6, 6), first)


def vision(host: Any) -> Any:
    return host.call("CascadeLoadImageEncoder", clip_name=file_name("image_encoder"))[0]


def vary(host: Any, **images_and_strengths: Any) -> Any:
    given = {"strength1": 1.0, "combine": "concat", **images_and_strengths}
    return host.call("CascadeImageVariation", clip_vision=vision(host), conditioning=conditioning(POSITIVE), **given)[0]


def test_variation_tells_stage_c_of_the_images(host: Any) -> None:
    first, second = images(28, 28), 1 - images(28, 28)
    [[_, extras]] = vary(host, image1=first, strength1=0.5, image2=second, strength2=-1.0)
    assert [entry["strength"] for entry in extras["unclip_conditioning"]] == [0.5, -1.0]
    embedding = extras["unclip_conditioning"][0]["clip_vision_output"].image_embeds
    expected = ImageEncoder(networks.network("image_encoder")).encode(first.movedim(-1, 1))
    # The host rounds pixels to whole 255ths.
    assert relative_error(embedding, expected[:, 0]) < 0.02
    [[_, one]] = vary(host, image1=torch.cat([first, second]), combine="average", image2=first[..., :1])
    [entry] = one["unclip_conditioning"]
    assert entry["clip_vision_output"].image_embeds.shape == (1, networks.IMAGE)
    results = [
        stage_c(host, positive=positive)
        for positive in (
            conditioning(POSITIVE),
            vary(host, image1=first),
            vary(host, image1=first, strength1=-1.0),
            vary(host, image1=first, image2=second),
            vary(host, image1=first, image2=second, combine="average"),
        )
    ]
    assert all(relative_error(a, b) > 1e-4 for i, a in enumerate(results) for b in results[:i])


def test_each_frame_hears_of_its_place_between_the_images(host: Any) -> None:
    first, second, third = images(28, 28), 1 - images(28, 28), images(28, 28).flip(2)
    ends = {"image1": first, "image2": second, "image3": third}
    [[_, extras]] = steps = vary(host, **ends, frames=5)
    [entry] = extras["unclip_conditioning"]
    seen = entry["clip_vision_output"].image_embeds
    [[_, extras]] = vary(host, **ends)
    told = [entry["clip_vision_output"].image_embeds for entry in extras["unclip_conditioning"]]
    expected = [told[0], slerp(told[0], told[1], 0.5), told[1], slerp(told[1], told[2], 0.5), told[2]]
    assert relative_error(seen, torch.cat(expected)) < 1e-5
    noise = {"samples": torch.zeros(5, 16, 5, 6), "batch_index": [0] * 5}
    frames = stage_c(host, positive=steps, latent_image=noise)
    for row, image in ((0, first), (2, second), (4, third)):
        alone = stage_c(host, positive=vary(host, image1=image))
        assert relative_error(frames[row : row + 1], alone) < 1e-4
    with pytest.raises(host.errors.CascadeError, match="two images or more"):
        vary(host, image1=first, frames=3)


def test_variation_beside_the_hosts_own(host: Any) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    loaded = graph("CascadeLoadImageEncoder", clip_name=file_name("image_encoder"))
    image = graph("EmptyImage", width=64, height=64, batch_size=1, color=0xFF8800)
    seen = graph("CLIPVisionEncode", clip_vision=loaded, image=image, crop="center")
    theirs = graph(
        "unCLIPConditioning", conditioning=parts.text[0], clip_vision_output=seen, strength=0.8, noise_augmentation=0.0
    )
    ours = graph(
        "CascadeImageVariation",
        clip_vision=loaded,
        conditioning=parts.text[0],
        image1=image,
        strength1=0.8,
        combine="concat",
    )
    both = graph(
        "CascadeImageVariation",
        clip_vision=loaded,
        conditioning=theirs,
        image1=image,
        strength1=0.8,
        combine="concat",
    )
    result = host.run(
        graph,
        theirs=parts.cascade(positive=theirs),
        ours=parts.cascade(positive=ours),
        both=both,
        plain=parts.cascade(),
    )
    assert relative_error(result.theirs["samples"], result.ours["samples"]) < 1e-5
    assert relative_error(result.plain["samples"], result.ours["samples"]) > 1e-3
    assert len(result.both[0][1]["unclip_conditioning"]) == 2


def test_reconstruction_is_the_librarys(host: Any) -> None:
    image = images(130, 194, batch=2)
    given = {"compression": 42.67, "seed": 3, "steps": 2, "cfg": 1.0}
    conds = {"positive": conditioning(POSITIVE), "negative": conditioning(NEGATIVE)}
    models = {"encoder": coder(host), "model": model(host, "stage_b"), "vae": stage_a(host)}
    again, comparison, small, decibels, likeness, report = host.call(
        "CascadeReconstruct", image=image, **models, **conds, **given
    )
    assert again.shape == image.shape
    assert torch.equal(comparison[:, :, :194], image)
    assert torch.equal(comparison[:, :, -194:], again)
    assert small["samples"].shape == (2, 16, 3, 4)
    assert 0 < decibels < 60
    assert -1 < likeness < 1
    assert "2 of 3 x 130 x 194 -> 16 x 3 x 4" in report
    assert len(report.splitlines()) == 3
    nets: dict[str, Any] = {kind: networks.network(kind) for kind in ("effnet", "stage_b", "stage_a")}
    with torch.no_grad():
        inputs = StageBInputs(encode_effnet(nets["effnet"], image.movedim(-1, 1)), POSITIVE.expand(2).pooled)
        settings = SamplingSettings(steps=2, guidance=Guidance(cfg=1.0))
        large = library_sample("stage_b", inputs, NEGATIVE, size=(4, 33, 49), seeds=[3, 4], settings=settings)
        expected = nets["stage_a"].decode(large).clamp(0, 1).movedim(1, -1)[:, :130, :194]
    # This random Stage A makes much of little: the mean, where the samplers' own test compares the latents.
    assert float((again - expected).abs().mean()) < 1e-3


def test_what_is_outside_the_mask_is_the_image(host: Any) -> None:
    """Both stages masked, and the host's composite: pixel for pixel."""
    parts = LoadedGraph()
    graph = parts.graph
    image = graph("EmptyImage", width=200, height=130, batch_size=1, color=0x3366CC)
    spot = graph("SolidMask", value=1.0, width=60, height=50)
    black = graph("SolidMask", value=0.0, width=200, height=130)
    mask = graph("MaskComposite", destination=black, source=spot, x=100, y=40, operation="add")
    soft = graph("FeatherMask", mask=mask, left=8, top=8, right=8, bottom=8)
    vae = graph("CascadeLoadStageA", vae_name=file_name("stage_a"), weight_dtype="fp32")
    encoder = graph("CascadeLoadEncoder", vae_name=file_name("effnet"), previewer="none", weight_dtype="fp32")
    source = graph(
        "CascadeEncodeImage", image=image, encoder=encoder, resize_mode=OWN, short_side=256, vae=vae, mask=soft
    )
    small = parts.cascade(latent_image=source[0], denoise=0.8)
    large = graph(
        "CascadeSampleStageB",
        model=graph("CascadeLoadStageB", unet_name=file_name("stage_b"), weight_dtype="fp32"),
        positive=parts.text[0],
        negative=parts.text[1],
        stage_c=small,
        latent_image=source[1],
        seed=1,
        steps=2,
        cfg=1.1,
        shift=1.0,
        **SETTINGS,
    )
    drawn = graph("CascadeDecode", samples=large, vae=vae, tiling="auto", tile_size=1024)
    whole = graph("ImageCompositeMasked", destination=source[2], source=drawn, x=0, y=0, resize_source=False, mask=soft)
    result = host.run(graph, source=source[2], whole=whole, small=small, start=source[0], mask=soft)
    outside = result.mask[0] == 0
    # The drawn image is 4 pixels wider than the source, and the host stretches the mask over it: off its border.
    outside = ~torch.nn.functional.max_pool2d((~outside).float()[None], 9, 1, 4)[0].bool()
    assert result.whole.shape == result.source.shape == (1, 130, 200, 3)
    assert torch.equal(result.whole[0][outside], result.source[0][outside])
    assert not torch.allclose(result.whole[0, 60, 130], result.source[0, 60, 130], atol=1e-2)
    kept = result.start["noise_mask"][0, 0] == 0
    assert relative_error(result.small["samples"][0][:, kept], result.start["samples"][0][:, kept]) < 1e-5


def test_the_hosts_own_encoders_scalers_and_composites(host: Any) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    image = graph("EmptyImage", width=300, height=200, batch_size=2, color=0x3366CC)
    scaled = graph("ImageScale", image=image, upscale_method="lanczos", width=288, height=192, crop="center")
    vae = graph("CascadeLoadStageA", vae_name=file_name("stage_a"), weight_dtype="fp32")
    encoder = graph("CascadeLoadEncoder", vae_name=file_name("effnet"), previewer="none", weight_dtype="fp32")
    mask = graph("SolidMask", value=1.0, width=288, height=192)
    plain = graph("VAEEncode", pixels=scaled, vae=encoder)
    inpaint = graph("VAEEncodeForInpaint", pixels=scaled, vae=vae, mask=mask, grow_mask_by=6)
    small_inpaint = graph("VAEEncodeForInpaint", pixels=scaled, vae=encoder, mask=mask, grow_mask_by=6)
    ours = graph("CascadeEncodeImage", image=scaled, encoder=encoder, resize_mode=OWN, short_side=256, vae=vae)
    pasted = graph("LatentComposite", samples_to=ours[1], samples_from=inpaint, x=64, y=32, feather=0)
    model_b = graph("CascadeLoadStageB", unet_name=file_name("stage_b"), weight_dtype="fp32")
    settings = {"model": model_b, "positive": parts.text[0], "negative": parts.text[1], "seed": 1, "steps": 2}
    settings |= {"cfg": 1.1, "shift": 1.0, **SETTINGS}
    result = host.run(
        graph,
        small=parts.cascade(latent_image=plain, denoise=0.5),
        small_inpaint=parts.cascade(latent_image=small_inpaint),
        large=graph("CascadeSampleStageB", stage_c=ours[0], latent_image=inpaint, **{**settings, "denoise": 0.5}),
        pasted=graph("CascadeSampleStageB", stage_c=ours[0], latent_image=pasted, **{**settings, "denoise": 0.5}),
        mixed=graph(
            "CascadeMixLatents", samples1=plain, samples2=ours[0], blend_factor=0.5, blend_mode="slerp", frames=1
        ),
    )
    assert result.small["samples"].shape == (2, 16, 6, 9)
    assert result.small_inpaint["samples"].shape == (2, 16, 6, 9)
    assert result.large["samples"].shape == result.pasted["samples"].shape == (2, 4, 48, 72)
    assert result.mixed["samples"].shape == (2, 16, 6, 9)


def test_two_passes_with_the_hosts_latent_scaling(host: Any) -> None:
    parts = LoadedGraph()
    graph = parts.graph
    first = parts.cascade()
    larger = graph("LatentUpscaleBy", samples=first, upscale_method="bilinear", scale_by=2.0)
    second = parts.cascade(latent_image=larger, denoise=0.3)
    large = graph(
        "CascadeSampleStageB",
        model=graph("CascadeLoadStageB", unet_name=file_name("stage_b"), weight_dtype="fp32"),
        positive=parts.text[0],
        negative=parts.text[1],
        stage_c=second,
        seed=1,
        steps=1,
        cfg=1.1,
        shift=1.0,
        tiling="always",
        options=graph("CascadeSamplingOptions", **{**OPTIONS, "tile_size": 256, "overlap": 64}),
        **SETTINGS,
    )
    result = host.run(graph, second=second, large=large)
    assert result.second["samples"].shape == (1, 16, 10, 12)
    assert result.large["samples"].shape == (1, 4, 106, 128)


def test_messages_name_the_node(host: Any) -> None:
    graph = Graph()
    encoder = graph("CascadeLoadEncoder", vae_name=file_name("effnet"), previewer="none", weight_dtype="fp32")
    image = graph("EmptyImage", width=2048, height=16, batch_size=1, color=0)
    latent = graph("CascadeEncodeImage", image=image, encoder=encoder, resize_mode=SHORT, short_side=1024)
    with pytest.raises(Failed, match=r"CascadeEncodeImage: An image's width must be 32 to 16384 pixels, not 131072"):
        host.run(graph, latent=latent)
