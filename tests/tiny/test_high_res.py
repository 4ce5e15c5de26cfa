"""What is measured of large images: the width of edges, and the questions to each size and way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from cascade import tiny
from cascade.checkpoints import inspect_file
from cascade.models import HighResGuideConfig, HighResGuides, initialize
from cascade.pipelines import Parts
from cascade.tiny import grammar, high_res
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
