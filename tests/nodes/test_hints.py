"""The hint nodes, and cropping and stitching, as the page would run them."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.images import canny, inpaint_hint, sketch
from tests.nodes.networks import file_name


@pytest.fixture(scope="module")
def encoder(host: Any) -> Any:
    path = host.models / "vae" / file_name("effnet")
    return host.pack("nodes.host.autoencoders").load_coder(path, None, "fp32")


def random_image(batch: int = 1, height: int = 96, width: int = 128, channels: int = 3) -> Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(1))


def test_canny(host: Any) -> None:
    image = random_image(2)
    [hint] = host.call(
        "CascadeCannyHint", image=image, resolution="as trained (224 x 224)", low_threshold=100.0, high_threshold=200.0
    )
    assert hint.shape == (2, 96, 128, 3)
    assert torch.equal(hint[..., 0], canny(image.movedim(-1, 1))[:, 0])
    assert torch.equal(hint[..., 0], hint[..., 2])
    [thin] = host.call(
        "CascadeCannyHint", image=image, resolution="full size", low_threshold=300.0, high_threshold=100.0
    )
    assert set(thin.unique().tolist()) <= {0.0, 1.0}


def test_sketch(host: Any) -> None:
    image = random_image(2)
    [hint] = host.call("CascadeSketchHint", image=image)
    assert hint.shape == (2, 96, 128, 3)
    assert torch.equal(hint[..., 0], sketch(image.movedim(-1, 1))[:, 0])


def test_inpainting_with_and_without_the_encoder(host: Any, encoder: Any) -> None:
    image, mask = random_image(), torch.zeros(1, 96, 128)
    mask[:, :48] = 1
    hint, latent, full = host.call("CascadeInpaintHint", image=image, mask=mask)
    assert torch.equal(hint.movedim(-1, 1), inpaint_hint(image.movedim(-1, 1), mask[:, None]))
    assert latent["samples"].shape == (1, 16, 3, 3)
    assert "noise_mask" not in latent
    assert torch.equal(full, mask)
    _, latent, _ = host.call("CascadeInpaintHint", image=image, mask=mask, encoder=encoder)
    assert latent["noise_mask"].reshape(3, 3).tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert latent["samples"].abs().max() > 0


@pytest.mark.parametrize("shape", [(1, 32, 32), (48, 64), (2, 96, 128)])
def test_masks_of_other_sizes(host: Any, shape: tuple[int, ...]) -> None:
    hint, _, mask = host.call("CascadeInpaintHint", image=random_image(2), mask=torch.ones(shape))
    assert hint.shape == (2, 96, 128, 4)
    assert mask.shape[-2:] == (96, 128)
    assert bool((hint == 1).all())


def test_masks_that_cannot_be_used(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match="mask is empty"):
        host.call("CascadeInpaintHint", image=random_image(), mask=torch.zeros(1, 64, 64))
    with pytest.raises(host.errors.CascadeError, match="3 masks for 2 images"):
        host.call("CascadeInpaintHint", image=random_image(2), mask=torch.ones(3, 96, 128))


def test_outpainting(host: Any, encoder: Any) -> None:
    margins = {"left": 0, "top": 32, "right": 64, "bottom": 0}
    hint, latent, padded, mask = host.call(
        "CascadeOutpaintHint", image=random_image(), **margins, feathering=8, encoder=encoder
    )
    assert hint.shape == (1, 128, 192, 4)
    assert torch.equal(padded[:, 32:, :128], random_image())
    # What fades in the mask is still shown.
    assert torch.equal(hint[:, 32:, :128, :3], random_image())
    assert 0 < float(mask[0, 34, 60]) < 1
    assert latent["samples"].shape == (1, 16, 3, 5)
    with pytest.raises(host.errors.CascadeError, match="all margins are 0"):
        host.call("CascadeOutpaintHint", image=random_image(), **dict.fromkeys(margins, 0), feathering=0)


def test_super_resolution(host: Any, encoder: Any) -> None:
    hint, stage_c, stage_b = host.call("CascadeSuperResolutionHint", image=random_image(), encoder=encoder, scale_by=2)
    assert hint.shape == (1, 6, 8, 16)
    assert torch.equal(hint[:, 0, 0], hint[:, 1, 1])
    assert stage_c["samples"].shape == (1, 16, 5, 6)
    assert stage_b["samples"].shape == (1, 4, 48, 64)
    stage_a = host.pack("nodes.host.autoencoders").load_stage_a(host.models / "vae" / file_name("stage_a"), "fp32")
    with pytest.raises(host.errors.CascadeError, match="connect the encoder and previewer"):
        host.call("CascadeSuperResolutionHint", image=random_image(), encoder=stage_a, scale_by=2)


BOX, FACE = [32.0, 32.0, 64.0, 96.0], [0.5] * 512


@pytest.mark.parametrize(
    ("bboxes", "embeddings"),
    [
        ([BOX], [FACE]),
        (torch.tensor([BOX]), torch.tensor([FACE])),
        (np.array([BOX]), [np.array(FACE)]),
        ([[BOX]], [[FACE]]),
        ([torch.tensor([BOX])], [torch.tensor([FACE])]),
        (torch.tensor([[BOX], [BOX]]), np.array([[FACE], [FACE]])),
    ],
)
def test_faces_in_whatever_form_a_detector_gives_them(host: Any, bboxes: Any, embeddings: Any) -> None:
    hint, shown = host.call(
        "CascadeIdentityHint", image=random_image(2), bboxes=bboxes, embeddings=embeddings, max_faces=4
    )
    assert hint.shape == (2, 3, 4, 512)
    assert bool((hint[:, 1:3, 1:2] == 0.5).all())
    assert float(hint.sum()) == 2 * 2 * 512 * 0.5
    assert torch.equal(shown[:, 32:, 32:64], random_image(2)[:, 32:, 32:64])


def test_twelve_faces_are_four(host: Any) -> None:
    bboxes = [[8.0 * i, 0.0, 8.0 * i + 8 + i, 8.0 + i] for i in range(12)]
    embeddings = [[float(i + 1)] * 512 for i in range(12)]
    hint, _ = host.call("CascadeIdentityHint", image=random_image(), bboxes=bboxes, embeddings=embeddings, max_faces=4)
    assert set(hint.unique().tolist()) <= {0.0, 9.0, 10.0, 11.0, 12.0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bboxes": [], "embeddings": []}, "no face"),
        ({"bboxes": [BOX]}, "embeddings are missing"),
        ({"bboxes": [[1.0, 2.0]], "embeddings": [FACE]}, "a box is left, top, right and bottom"),
        ({"bboxes": [BOX, BOX], "embeddings": [FACE]}, "1 embeddings, boxes"),
        ({"bboxes": [[BOX], [BOX]], "embeddings": [[FACE], [FACE[:8]]]}, r"different lengths: \[8, 512\]"),
        ({"bboxes": 3.0, "embeddings": [FACE]}, "a box is left, top, right and bottom"),
        ({"bboxes": [["a", "b", "c", "d"]], "embeddings": [FACE]}, "are numbers"),
    ],
)
def test_faces_that_cannot_be_used(host: Any, given: Any, words: str) -> None:
    with pytest.raises(host.errors.CascadeError, match=words):
        host.call("CascadeIdentityHint", image=random_image(), max_faces=4, **given)


def test_no_detector(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(host.errors.CascadeError, match=r"has no face detector.*pip install insightface"):
        host.call("CascadeIdentityHint", image=random_image(), max_faces=4)


def test_insightface_where_it_is(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    face = SimpleNamespace(bbox=np.array(BOX), normed_embedding=np.array(FACE))

    class Analysis:
        def __init__(self, **_: Any) -> None:
            pass

        def prepare(self, **_: Any) -> None:
            pass

        def get(self, pixels: Any) -> list[Any]:
            assert pixels.shape == (96, 128, 3)
            return [face]

    module = ModuleType("insightface.app")
    module.FaceAnalysis = Analysis  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "insightface", ModuleType("insightface"))
    monkeypatch.setitem(sys.modules, "insightface.app", module)
    with pytest.raises(host.errors.CascadeError, match=r"its networks are not. Put buffalo_l"):
        host.call("CascadeIdentityHint", image=random_image(), max_faces=4)
    folder = importlib.import_module("folder_paths").models_dir
    place = host.pack("nodes.host.faces").Path(folder) / "insightface" / "models" / "buffalo_l"
    place.mkdir(parents=True)
    hint, _ = host.call("CascadeIdentityHint", image=random_image(), max_faces=4)
    assert bool((hint[0, 1:3, 1] == 0.5).all())


def test_crop_and_stitch(host: Any) -> None:
    image, mask = random_image(1, 200, 300), torch.zeros(1, 200, 300)
    mask[:, 90:110, 140:170] = 1
    part, part_mask, stitch = host.call(
        "CascadeCropToMask", image=image, mask=mask, width=128, height=128, context=0.5, feathering=0
    )
    assert part.shape == (1, 128, 128, 3)
    assert part_mask.shape == (1, 128, 128)
    [back] = host.call("CascadeStitch", image=torch.zeros(2, 64, 64, 3), stitch=stitch)
    assert back.shape == (2, 200, 300, 3)
    outside = mask[0] == 0
    assert torch.equal(back[0][outside], image[0][outside])
    assert float(back[:, 90:110, 140:170].max()) == 0
    with pytest.raises(host.errors.CascadeError, match="mask is empty"):
        host.call("CascadeCropToMask", image=image, mask=mask * 0, width=64, height=64, context=0.5, feathering=0)
