"""What is measured of large images: the width of edges, and the questions to each size and way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from cascade import tiny
from cascade.checkpoints import inspect_file
from cascade.images import seam_ratio
from cascade.images.tiles import spans
from cascade.models import HighResGuideConfig, HighResGuides, initialize
from cascade.pipelines import Parts, Tiles, reconstruct
from cascade.pipelines.sizes import STAGE_B_FACTOR
from cascade.tiny import grammar, high_res
from cascade.tiny.analysis import edge_width
from cascade.tiny.drawing import EDGE, draw
from cascade.tiny.evaluation import held_out_scenes

COARSEST = 8
"""Positions of Stage B's latents, along a side, in one of the tiny network's coarsest level."""


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


def test_the_shipped_guides_are_small_and_for_the_shipped_stage_c() -> None:
    path = tiny.path(tiny.GUIDES)
    assert path.stat().st_size <= 1_000_000
    found, stage_c = inspect_file(path), inspect_file(tiny.path("stage_c"))
    assert found.config is not None
    assert stage_c.config is not None
    assert (found.kind, found.layout) == ("high_res_guides", "cascade")
    assert found.config["stage_c_width"] == stage_c.config["levels"][0]["width"]
    assert found.config["levels"] == len(stage_c.config["levels"])


@pytest.mark.slow
def test_stage_b_in_tiles_has_no_seams() -> None:
    """With the released steps, and a quarter of a tile's side in common with the next, as by default."""
    parts, size, tiles = Parts(tiny.parts()), 512, Tiles(256, 64)
    drawn = [draw(scene, np.random.default_rng(i), size=size) for i, scene in enumerate(held_out_scenes(3, seed=9))]
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) / 255
    found = spans(size // STAGE_B_FACTOR, tiles.latent_size, tiles.overlap // STAGE_B_FACTOR, COARSEST)
    edges = {STAGE_B_FACTOR * edge for span in found for edge in span} - {0, size}
    borders, period = sorted(edges), STAGE_B_FACTOR * COARSEST
    made = reconstruct(parts, images, seeds=[0, 1, 2], tiles=tiles).images
    assert seam_ratio(made, borders, borders, period=period) <= 1.1
    # What this is measured against: quarters that were made one by one.
    half = size // 2
    quarters = torch.cat([part for row in images.split(half, -2) for part in row.split(half, -1)])
    apart = reconstruct(parts, quarters, seeds=range(len(quarters))).images.chunk(4)
    joined = torch.cat([torch.cat(apart[:2], -1), torch.cat(apart[2:], -1)], -2)
    assert seam_ratio(joined, [half], [half], period=period) > 1.1


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
    assert len(found.samples) == 9
    assert {sample.image.shape[-1] for sample in found.samples} == {256, 512, 768}
