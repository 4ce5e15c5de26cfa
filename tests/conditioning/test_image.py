from __future__ import annotations

import pytest
import torch

from cascade.conditioning import ImageEncoder, combine_images
from cascade.conditioning.image import MEAN, STD, preprocess
from tests.support import relative_error

pytestmark = pytest.mark.numeric


@torch.no_grad()
def test_one_embedding_an_image(image_model):
    encoder = ImageEncoder(image_model)
    images = torch.rand(2, 3, 40, 60)
    embeddings = encoder.encode(images)
    assert embeddings.shape == (2, 1, 8)
    assert relative_error(encoder.encode(images[1:]), embeddings[1:]) < 1e-5


def test_preprocessing_takes_the_middle_square_and_normalizes():
    stripes = torch.zeros(1, 3, 28, 84)
    stripes[..., 28:56] = 1.0
    pixels = preprocess(stripes, 28)
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(pixels, white[None, :, None, None].expand(1, 3, 28, 28))


def test_preprocessing_of_odd_sizes():
    for size in ((28, 28), (100, 37), (11, 300), (1, 1)):
        assert preprocess(torch.rand(1, 3, *size), 28).shape == (1, 3, 28, 28)


def test_weighted_images_stand_side_by_side():
    a, b = torch.ones(2, 1, 8), torch.full((2, 1, 8), 3.0)
    combined = combine_images([a, b], [0.5, 2.0])
    assert combined.shape == (2, 2, 8)
    assert combined[:, 0].unique().item() == 0.5
    assert combined[:, 1].unique().item() == 6.0
    assert torch.equal(combine_images([a, b]), torch.cat([a, b], 1))
