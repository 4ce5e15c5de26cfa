"""The templates that start from images draw what they are for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade.tiny.analysis import describe
from tests.nodes.image_checks import AT_ITS_SIZE, needs_tiny, wrong
from tests.nodes.workflows import SAMPLES, prompt_of, run, with_values, workflow

SIZES = {
    "Image to Image": (256, 256),
    "Image to Image with a mask": (256, 256),
    "Image Variation": (256, 256),
    "Image prompts": (256, 256),
    "Mix Two Images": (256, 256),
    "Reconstruction Lab": (516, 256),
    "Large Image (no extra files)": (512, 512),
}
"""Of the images that each of them saves."""
NUMBERS = {"Image Variation": 4, "Image prompts": 4, "Reconstruction Lab": 2}
SOURCE = "red", "blue"
"""The square of the templates' image, and its background."""

Draw = Callable[[str], list[Image.Image]]


@pytest.fixture(scope="module")
def drawn(host: Any) -> Draw:
    """What a template saves, drawn once."""

    @cache
    def draw(name: str) -> list[Image.Image]:
        return run(host, workflow(name))

    return draw


@needs_tiny
@pytest.mark.parametrize("name", SIZES)
def test_they_run(drawn: Draw, name: str) -> None:
    images = drawn(name)
    assert len(images) == NUMBERS.get(name, 1)
    assert {image.size for image in images} == {SIZES[name]}


@pytest.mark.parametrize("name", SIZES)
def test_they_run_with_files_of_ones_own(host: Any, name: str) -> None:
    flow = with_values(workflow(name), host, "CascadeLoadCheckpoint", ckpt_name="search my folders")
    assert {image.size for image in run(host, flow)} == {SIZES[name]}


@needs_tiny
@pytest.mark.parametrize("name", ["Image to Image", "Large Image (no extra files)"])
def test_they_draw_what_the_prompt_says(drawn: Draw, name: str) -> None:
    assert wrong(prompt_of(workflow(name)), np.asarray(drawn(name)[0])) == []


@needs_tiny
def test_variations_show_what_the_image_shows(drawn: Draw) -> None:
    found = [describe(np.asarray(image)) for image in drawn("Image Variation")]
    assert [[(item.color, item.shape) for item in each.items] for each in found] == [[(SOURCE[0], "square")]] * 4
    assert {each.background for each in found} == {SOURCE[1]}


@needs_tiny
def test_a_masked_image_stays_outside_the_mask(drawn: Draw) -> None:
    pixels = np.asarray(drawn("Image to Image with a mask")[0])
    *colors, alpha = Image.open(SAMPLES / "stable_cascade_square_masked.png").split()
    source, outside = np.stack(colors, axis=-1), np.asarray(alpha) == 255
    assert np.array_equal(pixels[outside], source[outside])
    assert not np.array_equal(pixels[~outside], source[~outside])
    assert wrong(prompt_of(workflow("Image to Image with a mask")), pixels, AT_ITS_SIZE) == []


@needs_tiny
def test_a_reconstruction_has_the_colors_of_its_image(drawn: Draw) -> None:
    for image in drawn("Reconstruction Lab"):
        pixels = np.asarray(image)
        for found in (describe(pixels[:, :256]), describe(pixels[:, -256:])):
            assert ([item.color for item in found.items][:1], found.background) == ([SOURCE[0]], SOURCE[1])
