"""What is measured of large images: the width of edges, and the questions to each size and way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from cascade import tiny
from cascade.images.tiles import spans
from cascade.models import HighResGuideConfig, HighResGuides, initialize
from cascade.pipelines import STAGE_B_SETTINGS, Parts, Tiles, reconstruct
from cascade.tiny import drawing, grammar, high_res
from cascade.tiny.analysis import edge_width
from cascade.tiny.drawing import EDGE, draw


@pytest.mark.parametrize("shape", ["circle", "square"])
@pytest.mark.parametrize("size", [256, 512])
def test_the_width_of_an_edge_is_in_pixels_of_any_image(shape: str, size: int) -> None:
    scene = grammar.parse(f"a large red {shape} on a white background, center")
    assert scene is not None
    image = draw(scene, np.random.default_rng(1), size=size)
    # From a tenth to nine tenths of a straight ramp.
    assert edge_width(image) == pytest.approx(0.8 * EDGE, rel=0.1)
    blurred = ndimage.gaussian_filter(image.astype(np.float32) / 255, (2, 2, 0))
    assert edge_width(blurred) == pytest.approx(2 * 2 * 1.2816, rel=0.12)


def test_without_a_shape_there_is_no_edge() -> None:
    assert edge_width(torch.full((3, 64, 64), 0.5)) is None


@pytest.mark.slow
def test_stage_b_in_tiles_has_no_seams() -> None:
    """Where the drawing is flat, neighboring pixels differ no more across the borders of tiles than elsewhere."""
    drawn = drawing.batch(5, 2, size=512).images
    images = torch.from_numpy(drawn).movedim(-1, 1).float() / 255
    tiles = Tiles(256, 64)
    settings = replace(STAGE_B_SETTINGS, steps=4)
    made = reconstruct(Parts(tiny.parts()), images, seeds=[1, 2], tiles=tiles, settings=settings).images
    flat = ndimage.maximum_filter(_steps(images).numpy(), (1, 9, 9)) < 1e-3
    starts = [span.start for span in spans(128, tiles.latent_size, 16)]
    borders = {4 * side for start in starts for side in (start, start + tiles.latent_size) if 0 < side < 128}
    for axis in (-1, -2):
        step = made.diff(dim=axis).abs().mean(dim=1).movedim(axis, -1).numpy()
        level = np.moveaxis(flat, axis, -1)[..., 1:]
        near = np.zeros(511, bool)
        for border in borders:
            near[border - 3 : border + 2] = True
        across, inside = (step[level & chosen].mean() for chosen in (near, ~near))
        assert across / inside <= 1.1


def _steps(images: torch.Tensor) -> torch.Tensor:
    """How much each pixel differs from its neighbors [B, H, W]."""
    right = torch.nn.functional.pad(images.diff(dim=-1).abs().sum(dim=1), (0, 1))
    return right + torch.nn.functional.pad(images.diff(dim=-2).abs().sum(dim=1), (0, 0, 0, 1))


@pytest.mark.slow
def test_every_question_is_asked_at_every_size_in_every_way() -> None:
    stage_c = 128
    guides = initialize(
        HighResGuides(HighResGuideConfig(stage_c_width=stage_c, width=16, heads=2, groups=4, timestep_channels=8))
    )
    found = high_res.evaluate_high_res(Parts(tiny.parts()), guides.requires_grad_(False), prompts=2)  # type: ignore[arg-type]
    assert [row.question for row in found.rows] == list(high_res.AIMS)
    rows = {row.question: row for row in found.rows}
    assert len(rows["512, guides: all that the prompt says"].answers) == 2
    assert not math.isnan(rows["256: edges (pixels)"].reached)
    assert len(found.samples) == 7
    assert {sample.image.shape[-1] for sample in found.samples} == {256, 512, 768}
