from __future__ import annotations

import pytest
import torch

from cascade.conditioning import ImageEncoder, noise_augmented
from cascade.conditioning.image import MEAN, STD, preprocess
from cascade.errors import InvalidSettings
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


def test_noise_of_an_embedding_goes_from_none_to_all_at_its_length():
    seen = 5 * torch.randn(2, 3, 4000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(noise_augmented(seen, 0.0), seen)
    near, half, only = (noise_augmented(seen, level) for level in (0.1, 0.5, 1.0))
    for noised in (near, half, only):
        assert torch.allclose(noised.norm(dim=-1), seen.norm(dim=-1), rtol=0.05)
    # The cosine of the schedule: kept ** 2 is 0.97 at 0.1 and 0.49 at 0.5.
    alike = [torch.cosine_similarity(noised, seen, dim=-1).mean().item() for noised in (near, half, only)]
    assert alike == pytest.approx([0.986, 0.703, 0.0], abs=0.03)
    assert torch.equal(noise_augmented(seen[:1, 1:2], 0.5), half[:1, 1:2])
    for level in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidSettings, match="noise_augmentation must be from 0 to 1"):
            noise_augmented(seen, level)
