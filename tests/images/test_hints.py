from __future__ import annotations

import pytest
import torch

from cascade.images import (
    Faces,
    enlarge,
    fit_hint,
    identity_hint,
    inpaint_hint,
    outpaint,
    shrink,
    super_resolution_hint,
)
from tests.support import golden, relative_error


@pytest.mark.numeric
def test_the_golden_hints() -> None:
    data = golden("filters")
    assert torch.equal(inpaint_hint(data["images"], data["mask"]), data["inpaint"])
    assert relative_error(enlarge(shrink(data["images"], 4), 4), data["sr_quarter"]) < 1e-6


def test_what_is_to_be_filled_is_white_and_the_mask_comes_fourth() -> None:
    images, mask = torch.full((2, 3, 4, 4), 0.25), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 0.9
    hint = inpaint_hint(images, mask)
    assert hint.shape == (2, 4, 4, 4)
    assert bool((hint[..., :2] == 1).all())
    assert bool((hint[:, :3, :, 2:] == 0.25).all())
    assert bool((hint[:, 3, :, 2:] == 0).all())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_masks(value: float) -> None:
    hint = inpaint_hint(torch.full((1, 3, 4, 4), 0.25), torch.full((1, 1, 4, 4), value))
    assert float(hint[0, 0, 0, 0]) == (1.0 if value else 0.25)


def test_outpainting_pads_with_the_border_and_marks_the_margins() -> None:
    images = torch.rand(2, 3, 8, 8)
    padded, mask = outpaint(images, 4, 0, 2, 3)
    assert padded.shape == (2, 3, 11, 14)
    assert torch.equal(padded[..., :8, 4:12], images)
    assert torch.equal(padded[..., :8, 0], images[..., :, 0])
    assert mask.shape == (1, 1, 11, 14)
    assert bool((mask[..., :8, 4:12] == 0).all())
    assert float(mask.sum()) == 11 * 14 - 64


def test_feather_falls_inside_the_image_on_padded_sides_alone() -> None:
    mask = outpaint(torch.rand(1, 3, 8, 8), 4, 0, 0, 0, feather=4).mask[0, 0]
    assert mask[0, 4:8].tolist() == [0.875, 0.625, 0.375, 0.125]
    assert bool((mask[:, :4] == 1).all())
    assert bool((mask[:, 8:] == 0).all())


def test_no_margins_and_negative_ones() -> None:
    images = torch.rand(1, 3, 8, 8)
    padded, mask = outpaint(images, 0, 0, 0, 0, feather=4)
    assert torch.equal(padded, images)
    assert float(mask.max()) == 0
    with pytest.raises(ValueError, match="margins cannot be negative: left -1"):
        outpaint(images, -1, 0, 0, 0)


def test_super_resolution_repeats_the_latents_of_the_small_image() -> None:
    def encode(images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-2:] == (64, 96)
        return torch.arange(6.0).reshape(1, 1, 2, 3).expand(1, 16, 2, 3)

    hint = super_resolution_hint(shrink(torch.rand(1, 3, 128, 192)), encode)
    assert hint.shape == (1, 16, 4, 6)
    assert hint[0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def faces(*boxes: tuple[float, float, float, float]) -> Faces:
    embeddings = torch.arange(1.0, len(boxes) + 1)[:, None].expand(-1, 512)
    return Faces(torch.tensor(boxes).reshape(-1, 4), embeddings)


def test_a_face_stands_in_its_box() -> None:
    hint = identity_hint([faces((30, 66, 95, 130)), faces()], 256, 192)
    assert hint.shape == (2, 512, 8, 6)
    assert bool((hint[0, :, 2:4, 1:3] == 1).all())
    assert float(hint[0].sum()) == 512 * 4
    assert float(hint[1].abs().sum()) == 0


def test_of_twelve_faces_the_four_largest() -> None:
    boxes = [(32.0 * (i % 4), 32.0 * (i // 4), 32.0 * (i % 4) + 20 + i, 32.0 * (i // 4) + 20 + i) for i in range(12)]
    hint = identity_hint([faces(*boxes)], 128, 128)
    assert set(hint.unique().tolist()) == {0.0, 9.0, 10.0, 11.0, 12.0}


def test_the_larger_face_stands_in_front() -> None:
    hint = identity_hint([faces((0, 0, 128, 128), (32, 32, 64, 64))], 128, 128)
    assert hint.unique().tolist() == [1.0]


@pytest.mark.parametrize("box", [(10, 10, 12, 12), (500, 500, 600, 600), (-50, -50, -10, -10)])
def test_small_faces_and_faces_outside_get_one_field(box: tuple[float, float, float, float]) -> None:
    assert float((identity_hint([faces(box)], 128, 128) != 0).sum()) == 512


def test_no_face_and_boxes_without_embeddings() -> None:
    with pytest.raises(ValueError, match="no face"):
        identity_hint([faces()], 128, 128)
    with pytest.raises(ValueError, match=r"1 embeddings, boxes \[2, 4\]"):
        identity_hint([Faces(torch.zeros(2, 4), torch.zeros(1, 512))], 128, 128)


def test_a_hint_is_fitted_to_the_latents() -> None:
    image = torch.rand(1, 3, 256, 256)
    assert fit_hint(image, 6, 6, image=True).shape == (1, 3, 192, 192)
    wide = torch.zeros(1, 1, 256, 512)
    wide[..., 128:384] = 1
    assert bool((fit_hint(wide, 6, 6, image=True) == 1).all())
    latents = torch.rand(1, 16, 8, 8)
    assert torch.equal(fit_hint(latents, 6, 6, image=False), latents)
    assert torch.equal(fit_hint(latents, 16, 16, image=False), enlarge(latents))
