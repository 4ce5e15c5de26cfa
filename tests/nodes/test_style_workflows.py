"""The templates of style: what they draw is what the library draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from cascade import tiny
from cascade.images import from_pillow
from cascade.pipelines import Parts, Settings, StyleReference, generate
from tests.nodes.image_checks import needs_tiny
from tests.nodes.workflows import SAMPLES, prompt_of, run, with_values, workflow

SETTINGS = Settings(width=256, height=256)
TEMPLATES = ["Style reference", "Style aligned"]


def sample(name: str) -> Tensor:
    with Image.open(SAMPLES / f"stable_cascade_{name}.png") as image:
        return from_pillow(image)


def library(name: str) -> Tensor:
    prompt = prompt_of(workflow(name))
    style = StyleReference(image=sample("circle")) if name == "Style reference" else None
    aligned = float(name == "Style aligned")
    given = {"seeds": [1, 2, 3, 4], "style": style, "style_aligned": aligned, "settings": SETTINGS}
    return generate(Parts(tiny.parts()), [prompt] * 4, **given).images


@needs_tiny
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_draw_what_the_library_draws(host: Any, name: str) -> None:
    images = np.stack([np.asarray(image) for image in run(host, workflow(name))])
    expected = (library(name).movedim(1, -1).numpy() * 255).astype(np.uint8)
    # One pixel in many is rounded to its other side.
    assert np.abs(images.astype(float) - expected).mean() < 0.05


@needs_tiny
def test_style_and_content_steer_the_run(host: Any) -> None:
    flow = workflow("Style and content")
    steered, plain = (
        np.asarray(image).astype(float)
        for each in (flow, with_values(flow, host, "CascadeStyleControl", style_steps=0))
        for image in run(host, each)
    )
    assert np.abs(steered - plain).mean() > 1
