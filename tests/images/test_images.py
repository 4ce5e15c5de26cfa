"""Whatever people call an image or a mask, and how alike two images are."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.errors import InvalidImage
from cascade.images import (
    as_mask,
    as_rgb,
    fit,
    from_pillow,
    mask_of_latent,
    open_image,
    psnr,
    resize_mask,
    side_by_side,
    ssim,
    stage_c_input,
)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grey_and_alpha(channels: int) -> None:
    images = torch.rand(2, channels, 5, 7)
    before = images.clone()
    found = as_rgb(images)
    assert found.shape == (2, 3, 5, 7)
    assert torch.equal(found[:, 0], images[:, 0])
    assert torch.equal(found[:, 2], images[:, 2 if channels > 2 else 0])
    assert torch.equal(images, before)


def test_values_outside_are_clipped_and_what_is_given_is_left_alone() -> None:
    images = torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 3, 1, 1)
    assert as_rgb(images).flatten().tolist() == [0, 0.5, 1]
    assert images.flatten().tolist() == [-1, 0.5, 2]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 3, 8, 8), "no image"),
        (torch.zeros(1, 3, 0, 8), "no image"),
        (torch.zeros(3, 8, 8), "no image"),
        (torch.zeros(1, 5, 8, 8), "1 to 4 channels .* not 5"),
        (torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), torch.nan)]), "Image 2 of 2 .* NaN"),
        (torch.full((1, 3, 2, 2), torch.inf), "Image 1 of 1 .* infinity"),
    ],
)
def test_what_is_no_image_is_said(images: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        as_rgb(images)


def test_sixteen_bits_are_kept() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found = from_pillow(Image.fromarray(ramp))
    assert found.shape == (1, 3, 8, 8)
    assert torch.allclose(found[0, 1].flatten(), torch.linspace(0, 1, 64), atol=1e-4)


def test_fit_covers_and_takes_the_middle() -> None:
    ramp = torch.linspace(0, 1, 100).expand(1, 3, 50, 100)
    assert fit(ramp, 50, 100) is ramp
    middle = fit(ramp, 50, 50)
    assert middle.shape == (1, 3, 50, 50)
    assert middle[0, 0, 0, 0] == pytest.approx(25 / 99, abs=1e-3)
    assert fit(torch.rand(1, 3, 1, 1), 64, 96).shape == (1, 3, 64, 96)


def test_the_encoders_image_is_32_times_the_latent() -> None:
    assert stage_c_input(torch.rand(1, 3, 1024, 1536), (24, 36)).shape == (1, 3, 768, 1152)


def test_masks() -> None:
    spot = torch.zeros(1024, 1024)
    spot[100, 100], spot[500, 500] = 1, 0.5
    mask = as_mask(spot)
    assert mask.shape == (1, 1, 1024, 1024)
    small = mask_of_latent(mask, (24, 24))
    assert sorted(small.unique().tolist()) == [0, 0.5, 1]
    assert int((small > 0).sum()) == 2
    assert as_mask(torch.ones(2, 8, 8)).shape == (2, 1, 8, 8)
    assert resize_mask(mask, (64, 32)).shape == (1, 1, 64, 32)
    with pytest.raises(InvalidImage, match="The mask is empty"):
        as_mask(torch.zeros(1, 64, 64))


def test_likeness() -> None:
    image = torch.rand(3, 32, 32)
    other = (image + 0.1 * torch.randn_like(image)).clamp(0, 1)
    assert psnr(image, image) == pytest.approx(100)
    assert psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.1)) == pytest.approx(20, abs=1e-4)
    assert ssim(image, image) == pytest.approx(1, abs=1e-4)
    assert ssim(image, other) < 0.99
    both = side_by_side(image[None], other[None])
    assert both.shape == (1, 3, 32, 65)
    assert torch.equal(both[0, ..., :32], image)
    assert torch.equal(both[0, ..., 33:], other)


@pytest.mark.parametrize("size", [(1, 70_000), (70_000, 1)])
def test_an_image_of_too_long_a_side_is_not_decoded(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    with pytest.raises(InvalidImage, match="65,535 a side"), open_image(file.getvalue()) as image:
        image.load()


def test_a_tiff_of_too_many_strips_is_not_decoded() -> None:
    count = 200_000
    tags = ((256, 8), (257, count), (258, 8), (259, 1), (262, 1), (273, 110), (278, 1))
    entries = b"".join(struct.pack("<HHII", tag, 4, count if tag == 273 else 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(100 + 4 * count)
    with pytest.raises(InvalidImage, match="200,000 strips or tiles"), open_image(content) as image:
        image.load()
