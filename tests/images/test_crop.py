from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cascade.images import composite, crop_to_mask, soften
from tests.support import relative_error


def marked(height: int, width: int, top: int, left: int, size: int = 8) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., top : top + size, left : left + size] = 1
    return mask


@pytest.mark.parametrize(("top", "left"), [(30, 40), (0, 0), (56, 92), (20, 92)])
def test_the_mask_lies_in_the_crop_and_the_crop_in_the_image(top: int, left: int) -> None:
    images, mask = torch.rand(1, 3, 64, 100), marked(64, 100, top, left)
    crop = crop_to_mask(images, mask, width=48, height=48, context=0.5)
    x0, y0, x1, y1 = crop.box
    assert crop.images.shape == (1, 3, 48, 48)
    assert 0 <= x0 <= left < left + 8 <= x1 <= 100
    assert 0 <= y0 <= top < top + 8 <= y1 <= 64
    assert (x1 - x0, y1 - y0) == (16, 16)
    assert float(crop.mask.max()) > 0.9


def test_outside_the_mask_the_image_comes_back_bit_for_bit() -> None:
    images, mask = torch.rand(2, 3, 64, 64), marked(64, 64, 20, 24)
    crop = crop_to_mask(images, mask, width=96, height=96, feather=3)
    back = crop.stitch(torch.zeros(2, 3, 96, 96))
    reach = soften(mask, 3)[0, 0] > 0
    assert torch.equal(back[..., ~reach], images[..., ~reach])
    assert float(back[..., 20:28, 24:32].max()) == 0
    between = reach & (mask[0, 0] == 0)
    assert bool((back[..., between] < images[..., between]).all())


def test_what_was_not_changed_comes_back() -> None:
    images, mask = torch.rand(1, 3, 64, 64), marked(64, 64, 20, 24)
    crop = crop_to_mask(images, mask, width=16, height=16)
    assert relative_error(crop.stitch(crop.images), images) < 1e-6


def test_a_batch_from_one_crop() -> None:
    crop = crop_to_mask(torch.rand(1, 3, 64, 64), marked(64, 64, 20, 24), width=32, height=32)
    assert crop.stitch(torch.rand(3, 3, 32, 32)).shape == (3, 3, 64, 64)


def test_full_empty_and_other_masks() -> None:
    images = torch.rand(1, 3, 40, 60)
    assert crop_to_mask(images, torch.ones(1, 1, 40, 60), width=32, height=32).box == (0, 0, 60, 40)
    with pytest.raises(ValueError, match="the mask is empty"):
        crop_to_mask(images, torch.zeros(1, 1, 40, 60), width=32, height=32)
    with pytest.raises(ValueError, match="the mask is 32 x 32, the image 60 x 40"):
        crop_to_mask(images, torch.ones(1, 1, 32, 32), width=32, height=32)


def test_composite_keeps_the_source_bit_for_bit() -> None:
    source, drawn, mask = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), marked(8, 8, 2, 2, 3)
    made = composite(drawn, source, mask)
    assert torch.equal(made[..., mask[0, 0] == 0], source[..., mask[0, 0] == 0])
    assert relative_error(made[..., 2:5, 2:5], drawn[..., 2:5, 2:5]) < 1e-6
