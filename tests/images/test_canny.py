"""Edges are OpenCV's: `tests/data/canny.npz` holds what its `Canny(image, 100, 200)` found (version 4.9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from cascade.images import canny
from tests.support import DATA, golden

EDGES = dict(np.load(DATA / "canny.npz"))


def images(name: str) -> Tensor:
    return torch.from_numpy(EDGES[name]).movedim(-1, 1).float() / 255


def f_score(found: np.ndarray, expected: np.ndarray) -> float:
    """Of two edge maps [h, w]; an edge counts where the other has one within one pixel. Two empty ones agree."""
    if not found.any() and not expected.any():
        return 1.0
    near = np.ones((3, 3))
    precision = (ndimage.binary_dilation(expected, near) & found).sum() / max(1, found.sum())
    recall = (ndimage.binary_dilation(found, near) & expected).sum() / max(1, expected.sum())
    return 2 * precision * recall / max(precision + recall, 1e-9)


@pytest.mark.parametrize("name", ["noise", "drawn"])
def test_full_size_edges_are_opencvs_to_the_pixel(name: str) -> None:
    found = canny(images(name), size=None)
    assert EDGES[f"{name}_edges"].any()
    assert np.array_equal(found[:, 0].numpy() > 0, EDGES[f"{name}_edges"])


@pytest.mark.numeric
def test_edges_as_learned_are_those_of_a_224_square_brought_back() -> None:
    drawn = images("drawn")
    expected = torch.from_numpy(EDGES["drawn_edges_224"]).float()[:, None]
    expected = F.interpolate(expected, drawn.shape[-2:], mode="bilinear")
    # Where a shrunk pixel is a whole number but for rounding, the processor decides what it is cut off to.
    assert ((canny(drawn) - expected).abs() > 1e-6).float().mean() < 1e-3
    assert ((canny(drawn, size=222) - expected).abs() > 1e-6).float().mean() > 1e-3


@pytest.mark.parametrize(("size", "name"), [(224, "canny_224"), (None, "canny")])
def test_the_golden_edges(size: int | None, name: str) -> None:
    """Of an image too smooth for any."""
    data = golden("filters")
    for found, expected in zip(canny(data["images"], size=size), data[name]):
        assert f_score(found[0].numpy() > 0.5, expected[0].numpy() > 0.5) >= 0.97


def test_thresholds_count() -> None:
    drawn = images("drawn")
    assert canny(drawn, low=0, high=0).sum() > canny(drawn).sum() > canny(drawn, low=2000, high=3000).sum() == 0


def test_an_edge_in_one_color_alone_is_an_edge() -> None:
    image = torch.full((1, 3, 32, 32), 0.5)
    image[:, 2, :, 16:] = 1.0
    assert canny(image, size=None)[0, 0].sum() == 32
