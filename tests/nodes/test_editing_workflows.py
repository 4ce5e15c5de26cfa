"""The templates of edits, word maps and regions: what they draw, which is what the library draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade import tiny
from cascade.editing import EditStrength, box_mask
from cascade.pipelines import Parts, RegionalPrompt, Settings, edit, edit_images, generate, invert_images
from tests.nodes.image_checks import AT_ITS_SIZE, needs_tiny, wrong
from tests.nodes.workflows import SAMPLES, run, workflow

SETTINGS = Settings(width=256, height=256)
BEFORE = "a red circle on the left and a blue star on the right, white background"
AFTER = "a red circle on the left and a blue triangle on the right, white background"
PHOTO = "a large green circle on a yellow background, center"
EDITED_PHOTO = "a large green star on a yellow background, center"
TWO = "a {0} on the left and a {0} on the right, white background"


def parts() -> Parts:
    return Parts(tiny.parts())


def edited() -> Tensor:
    made = edit(parts(), BEFORE, AFTER, seeds=[1], settings=SETTINGS)
    # As their files are sorted.
    return torch.cat([made.target.images, made.source.images])


def edited_photo() -> Tensor:
    pixels = np.array(Image.open(SAMPLES / "stable_cascade_circle.png").convert("RGB"))
    photo = torch.from_numpy(pixels).movedim(-1, 0)[None].float() / 255
    inversion = invert_images(parts(), photo, PHOTO, seeds=[1], settings=SETTINGS)
    return edit_images(
        parts(),
        photo,
        inversion,
        EDITED_PHOTO,
        seeds=[1],
        strength=EditStrength(text=0.6, image=0.4),
        settings=SETTINGS,
    ).images


def regions() -> Tensor:
    halves = {"red circle": (0, 0, 0.5, 1), "blue star": (0.5, 0, 1, 1)}
    given = [RegionalPrompt(box_mask(box), TWO.format(item)) for item, box in halves.items()]
    return generate(parts(), [TWO.format("green square")], seeds=[1], regions=given, settings=SETTINGS).images


TEMPLATES = {
    "Edit by prompt": (edited, [AFTER, BEFORE]),
    "Edit a photo": (edited_photo, [EDITED_PHOTO]),
    "Regional prompts": (regions, [BEFORE]),
    "Word maps": (None, ["a large red star on a yellow background, center"]),
}


@needs_tiny
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_draw_what_their_prompts_say_as_the_library(host: Any, name: str) -> None:
    library, prompts = TEMPLATES[name]
    images = [np.asarray(image) for image in run(host, workflow(name))]
    for prompt, image in zip(prompts, images, strict=True):
        assert wrong(prompt, image, AT_ITS_SIZE) == []
    if library is not None:
        expected = (library().movedim(1, -1).numpy() * 255).astype(np.uint8)
        # One pixel in many is rounded to its other side.
        assert np.abs(np.stack(images).astype(float) - expected).mean() < 0.05
