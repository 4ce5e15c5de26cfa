from __future__ import annotations

import pytest

from cascade.errors import InvalidSize
from cascade.pipelines import latent_sizes


@pytest.mark.parametrize(
    ("side", "stage_c", "stage_b"),
    [(256, 6, 64), (1024, 24, 256), (704, 17, 176), (832, 20, 208), (960, 23, 240), (1088, 26, 272), (1216, 29, 304)],
)
def test_the_released_rule(side, stage_c, stage_b):
    sizes = latent_sizes(side, 1024)
    assert sizes.stage_c == (16, stage_c, 24)
    assert sizes.stage_b == (4, stage_b, 256)


def test_odd_sizes_are_rounded_up():
    assert latent_sizes(1023, 33).stage_b == (4, 256, 9)


@pytest.mark.parametrize("size", [(0, 1024), (-8, 1024), (1024, 8), (1024, 100_000)])
def test_absurd_sizes_are_refused_by_name(size):
    with pytest.raises(InvalidSize, match=r"height|width"):
        latent_sizes(*size)
