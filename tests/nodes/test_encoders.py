"""CLIP, CLIP_VISION and the VAEs: the library's numbers, and the host's own nodes on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascade.conditioning import ImageEncoder, TextEncoder
from cascade.images.resize import normalize
from cascade.models import STAGE_A
from tests.nodes import networks
from tests.nodes.hosting import Failed, Graph
from tests.nodes.networks import file_name
from tests.nodes.node_calls import clip, coder, images, stage_a
from tests.support import relative_error

LONG = "a red circle and a blue square, " * 20


@pytest.mark.parametrize("prompt", ["", "a large red circle", LONG])
def test_text_is_what_the_library_makes_of_it(host: Any, prompt: str) -> None:
    [[hidden, extras]], _ = host.call("CascadeTextEncode", clip=clip(host), positive=prompt, negative="")
    expected = TextEncoder(networks.network("text_encoder")).encode([prompt])
    # The host breaks long prompts at words, the library at tokens: only the first chunk is the same.
    assert relative_error(hidden[:, :70], expected.hidden[:, :70]) < 1e-4 if prompt != LONG else hidden.shape[1] > 77
    assert prompt == LONG or relative_error(extras["pooled_output"], expected.pooled[:, 0]) < 1e-4


@pytest.mark.parametrize("prompts", [("red \ud83d", ""), ("red", "\udca8")])
def test_half_of_a_character_is_refused(host: Any, prompts: tuple[str, str]) -> None:
    with pytest.raises(host.errors.CascadeError, match="half of a character"):
        host.call("CascadeTextEncode", clip=clip(host), positive=prompts[0], negative=prompts[1])


def test_weights_and_both_prompts(host: Any) -> None:
    encoder = clip(host)
    one, two = host.call("CascadeTextEncode", clip=encoder, positive="a (red:1.5) circle", negative="a red circle")
    assert relative_error(one[0][0], two[0][0]) > 1e-3
    again = host.call("CascadeTextEncode", clip=encoder, positive="a red circle", negative="")[0]
    assert torch.equal(again[0][0], two[0][0])


def test_learned_words(host: Any) -> None:
    folder = host.models / "embeddings"
    folder.mkdir(exist_ok=True)
    save_file({"clip_g": torch.randn(2, networks.WIDTH)}, folder / "thing.safetensors")
    encoder = clip(host)
    tokens = encoder.tokenize("a embedding:thing here")["g"][0]
    assert sum(torch.is_tensor(token) for token, _ in tokens) == 2
    with_word, without = host.call("CascadeTextEncode", clip=encoder, positive="a embedding:thing", negative="a")
    assert relative_error(with_word[0][0], without[0][0]) > 1e-3


def test_the_hosts_text_node_and_clip_layer(host: Any) -> None:
    graph = Graph()
    loaded = graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
    theirs = graph("CLIPTextEncode", clip=loaded, text="a red circle")
    ours = graph("CascadeTextEncode", clip=loaded, positive="a red circle", negative="")
    earlier = graph(
        "CLIPTextEncode", clip=graph("CLIPSetLastLayer", clip=loaded, stop_at_clip_layer=-2), text="a red circle"
    )
    result = host.run(graph, theirs=theirs, ours=ours, earlier=earlier)
    assert torch.equal(result.theirs[0][0], result.ours[0][0])
    assert not torch.equal(result.earlier[0][0], result.ours[0][0])


def test_images_are_what_the_library_makes_of_them(host: Any) -> None:
    vision = host.call("CascadeLoadImageEncoder", clip_name=file_name("image_encoder"))[0]
    image = images(28, 28)
    with torch.inference_mode():
        found = vision.encode_image(image)
    expected = ImageEncoder(networks.network("image_encoder")).encode(image.movedim(-1, 1))
    # The host rounds pixels to whole 255ths.
    assert relative_error(found.image_embeds, expected[:, 0]) < 0.02


def test_stage_a_is_the_librarys_in_the_hosts_convention(host: Any) -> None:
    net: Any = networks.network("stage_a")
    image = images()
    with torch.no_grad():
        latent = net.encode(image.movedim(-1, 1)) * net.config.scale_factor
        decoded = net.decode(latent / net.config.scale_factor).clamp(0, 1).movedim(1, -1)
    vae = stage_a(host)
    with torch.inference_mode():
        assert relative_error(vae.encode(image), latent) < 1e-4
        assert relative_error(vae.decode(latent), decoded) < 1e-4
        assert relative_error(vae.decode_tiled(latent, tile_x=12, tile_y=12, overlap=4), decoded) < 1e-4
        assert relative_error(vae.encode_tiled(image, tile_x=48, tile_y=48, overlap=16), latent) < 1e-4


def test_decoding_in_tiles_is_asked_for_or_needed(host: Any) -> None:
    vae, latent = stage_a(host), {"samples": torch.randn(2, 4, 40, 88)}
    whole, tiled = (
        host.call("CascadeDecode", samples=latent, vae=vae, tiling=tiling, tile_size=128)[0]
        for tiling in ("never", "always")
    )
    assert whole.shape == tiled.shape == (2, 160, 352, 3)
    assert float((whole - tiled).abs().max()) < 1 / 255
    vae.memory_used_decode = lambda shape, dtype: 1e15
    assert torch.equal(host.call("CascadeDecode", samples=latent, vae=vae, tiling="auto", tile_size=128)[0], tiled)


def test_encoder_and_previewer(host: Any) -> None:
    vae, image = coder(host), images(96, 128)
    with torch.no_grad():
        latent = networks.network("effnet")(normalize(image.movedim(-1, 1)))
        preview = networks.network("previewer")(latent).clamp(0, 1).movedim(1, -1)
    with torch.inference_mode():
        assert relative_error(vae.encode(image), latent) < 1e-4
    [found] = host.call("CascadePreviewDecode", samples={"samples": latent}, encoder=vae)
    assert relative_error(found, preview) < 1e-4


def test_the_host_encodes_for_stage_c(host: Any) -> None:
    with torch.inference_mode():
        stage_c, stage_b = (
            host.classes["StableCascade_StageC_VAEEncode"].execute(images(256, 256), coder(host), 42).result
        )
    assert stage_c["samples"].shape == (1, 16, 6, 6)
    assert stage_b["samples"].shape == (1, 4, 64, 64)


def test_half_a_coder_says_what_is_missing(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match="load the previewer as well"):
        host.call(
            "CascadePreviewDecode", samples={"samples": torch.zeros(1, 16, 4, 4)}, encoder=coder(host, previewer="none")
        )
    alone = coder(host, vae_name=file_name("previewer"), previewer="auto")
    host.call("CascadePreviewDecode", samples={"samples": torch.zeros(1, 16, 4, 4)}, encoder=alone)
    with pytest.raises(host.errors.CascadeError, match="load the EfficientNet encoder as well"):
        alone.encode(images())


def test_a_wrong_file_is_named(host: Any) -> None:
    graph = Graph()
    vae = graph("CascadeLoadEncoder", vae_name=file_name("stage_a"), previewer="auto", weight_dtype="default")
    with pytest.raises(Failed, match=r"this is Stage A, custom; it belongs in vae. Wanted here: EfficientNet"):
        host.run(graph, vae=vae)


def test_saved_vaes_have_the_hosts_names(host: Any, tmp_path: Path) -> None:
    assert {name.split(".")[0] for name in coder(host).get_sd()} == {"encoder", "previewer"}
    original = load_file(host.models / "vae" / file_name("stage_a"))
    assert set(stage_a(host).get_sd()) == set(original)


@pytest.mark.parametrize(
    ("samples", "cure"),
    [(torch.full((1, 4, 8, 8), torch.nan), "dtype bf16"), (torch.ones(1, 16, 8, 8), "those of Stage C")],
)
def test_what_cannot_be_decoded_is_explained(host: Any, samples: Tensor, cure: str) -> None:
    with pytest.raises(host.errors.CascadeError, match=cure):
        host.call("CascadeDecode", samples={"samples": samples}, vae=stage_a(host), tiling="never", tile_size=512)


def test_the_wrong_vae_is_explained(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match="connect Stage A"):
        host.call(
            "CascadeDecode",
            samples={"samples": torch.zeros(1, 4, 8, 8)},
            vae=coder(host),
            tiling="never",
            tile_size=512,
        )


@pytest.mark.parametrize(("side", "measured"), [(1024, 1.12e9), (2048, 3.7e9), (4096, 13.2e9)])
def test_memory_is_asked_for_as_it_is_needed(host: Any, side: int, measured: float) -> None:
    """Measured: the peak of the released Stage A's activations in float32, at 1024 with a GPU's larger parts."""
    geometry = host.pack("nodes.host.autoencoders")._stage_a_geometry(STAGE_A)
    decode = geometry.decode_memory((1, 4, side // 4, side // 4), torch.float32)
    assert measured <= decode < 1.2 * measured
    assert geometry.encode_memory((1, 3, side, side), torch.float32) == decode
