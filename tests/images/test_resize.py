from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.images import effnet_input, from_pillow, normalize, resize_short_side, three_quarters, to_pillow


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1024, 1024), (768, 768)), ((256, 256), (192, 192)), ((1000, 832), (736, 608)), ((40, 1023), (32, 736))],
)
def test_three_quarters_down_to_a_multiple_of_32(size, expected):
    assert three_quarters(torch.zeros(1, 3, *size)).shape[-2:] == expected


def test_three_quarters_takes_the_nearest_pixel():
    images = torch.arange(128.0).expand(1, 3, 128, 128)
    assert torch.equal(three_quarters(images)[0, 0, 0, :4], torch.tensor([0.0, 1.0, 2.0, 4.0]))


@pytest.mark.parametrize(("size", "expected"), [((100, 200), (768, 1536)), ((1025, 1000), (787, 768))])
def test_short_side(size, expected):
    assert resize_short_side(torch.zeros(1, 3, *size), 768).shape[-2:] == expected


def test_normalize_is_imagenets():
    assert normalize(torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]).abs().max() < 1e-6
    assert effnet_input(torch.ones(1, 3, 64, 64))[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)


def test_images_survive_pillow():
    pillow = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    image = from_pillow(pillow)
    assert image.shape == (1, 3, 5, 7)
    assert np.array_equal(np.array(to_pillow(image[0])), np.array(pillow))


def test_values_outside_are_clipped():
    assert np.array(to_pillow(torch.tensor([-1.0, 0.5, 2.0])[:, None, None])).tolist() == [[[0, 128, 255]]]
