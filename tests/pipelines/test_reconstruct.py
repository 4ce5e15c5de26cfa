from __future__ import annotations

import pytest
import torch

from cascade.diffusion import Guidance
from cascade.images import effnet_input
from cascade.pipelines import Parts, SamplingSettings, reconstruct
from tests.small import small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric

FEW = SamplingSettings(steps=2, guidance=Guidance(cfg=1.1), shift=1.0)


def test_images_come_back_at_their_size():
    nets = small_cascade()
    images = torch.rand(2, 3, 90, 130)
    result = reconstruct(Parts(nets), images, seeds=[0, 1], settings=FEW)
    assert result.images.shape == images.shape
    assert relative_error(result.stage_c, nets["effnet"](effnet_input(images))) < 1e-5
    alone = reconstruct(Parts(nets), images[1:], seeds=[1], settings=FEW)
    assert relative_error(alone.images, result.images[1:]) < 1e-4


def test_each_image_needs_a_seed():
    with pytest.raises(ValueError, match="2 images, 1 seeds"):
        reconstruct(Parts({}), torch.rand(2, 3, 64, 64), seeds=[0])
