"""The templates that open as apps, used as a person does who has never seen a graph."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from cascade.tiny.analysis import describe
from tests.browser.driving import Page
from tests.nodes.image_checks import needs_tiny
from tests.nodes.workflows import SAMPLES

APPS = {
    "Text to Image.app": "a small yellow star on a black background, top",
    "Image to Image.app": "a large orange square on a blue background, center",
    "Inpaint.app": "a large white square on a blue background, center",
    "LoRA.app": "a yellow [heart] on a black background",
}
"""Each with another prompt than it opens with."""
SHOWN = {
    "Text to Image.app": ("black", "yellow"),
    "Image to Image.app": ("blue", "orange"),
    "Inpaint.app": ("blue", "white"),
    "LoRA.app": ("black", "yellow"),
}
"""Background and color of the shape in its result."""


def write_prompt(page: Page, text: str) -> None:
    prompt = page.tab.get_by_role("textbox").first
    # The panel is filled in the frames after the app has opened.
    page.settle()
    prompt.click()
    prompt.fill(text)
    page.settle()
    expect(prompt).to_have_value(text)


def result(page: Page) -> np.ndarray:
    """The image that the app shows [H, W, 3]."""
    shown = page.tab.get_by_test_id("linear-image-output").first
    expect(shown).to_be_visible()
    page.tab.wait_for_function("(image) => image.naturalWidth > 0", arg=shown.element_handle())
    address = shown.evaluate("(image) => image.src")
    return np.asarray(Image.open(io.BytesIO(page.tab.request.get(address).body())).convert("RGB"))


@needs_tiny
@pytest.mark.parametrize("name", APPS)
def test_an_app_makes_an_image_from_its_inputs(page: Page, name: str) -> None:
    page.open_template(name)
    expect(page.tab.locator("#graph-canvas")).not_to_be_visible()
    write_prompt(page, APPS[name])
    assert page.run() == "execution_success"
    image = result(page)
    assert image.shape == (256, 256, 3)
    found = describe(image)
    assert (found.background, [item.color for item in found.items]) == (SHOWN[name][0], [SHOWN[name][1]])


@needs_tiny
def test_an_app_takes_an_image(page: Page) -> None:
    page.open_template("Image to Image.app")
    with page.tab.expect_file_chooser() as chosen:
        page.tab.locator("[data-slot=drop-zone-indicator]").click()
    chosen.value.set_files(SAMPLES / "stable_cascade_circle.png")
    write_prompt(page, "a large green circle on a yellow background, center")
    assert page.run() == "execution_success"
    assert describe(result(page)).background == "yellow"


def test_a_size_chosen_in_an_app_is_the_images_size(page: Page) -> None:
    page.open_template("Text to Image.app")
    page.settle()
    page.tab.get_by_text("256 x 256 (tiny cascade)").first.click()
    page.tab.get_by_role("option", name="1376 x 768").click()
    widgets = f"{page.find('CascadeEmptyLatent')}.widgets.slice(0, 3).map((widget) => widget.value)"
    page.tab.wait_for_function(f"{widgets}.join() === '1376 x 768 (16:9),1376,768'", timeout=20_000)
