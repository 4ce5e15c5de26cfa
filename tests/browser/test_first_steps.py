"""How many clicks it takes from an empty page to an image, counted by the page, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cascade.tiny.analysis import describe
from tests.browser.driving import Page
from tests.browser.test_apps import result, write_prompt
from tests.nodes.image_checks import needs_tiny, wrong
from tests.nodes.workflows import SAMPLES, prompt_of, workflow
from tests.server.serving import PACK

FILE_CHOOSER = 2
"""Clicks in the system's dialog, which the page does not see: on the file, and on Open."""
TEMPLATES = {"en": "Templates", "zh": "模板"}
"""The button at the left."""
COUNT = "() => { window.clicks = 0; document.addEventListener('click', () => { window.clicks += 1; }, true); }"


@pytest.fixture(params=TEMPLATES)
def language(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def empty_page(page: Page, language: str) -> Iterator[Page]:
    page.speak(language)
    page.open({"nodes": [], "links": [], "version": 0.4})
    page.tab.evaluate(COUNT)
    yield page
    page.speak("en")


def choose_template(page: Page, name: str, language: str) -> None:
    """By clicks alone: the button at the left, this pack, the template."""
    page.tab.get_by_role("button", name=TEMPLATES[language]).first.click()
    page.tab.get_by_role("button", name=PACK).or_(page.tab.get_by_text(PACK, exact=True)).first.click()
    page.tab.get_by_test_id(f"template-workflow-{name}").click()
    page.tab.wait_for_function("app.graph.nodes.length > 0")


@needs_tiny
def test_the_first_image_takes_four_clicks(empty_page: Page, language: str) -> None:
    name = "Text to Image (tiny, no download)"
    choose_template(empty_page, name, language)
    assert empty_page.run() == "execution_success"
    assert wrong(prompt_of(workflow(name)), empty_page.image("SaveImage")) == []
    assert empty_page.tab.evaluate("window.clicks") <= 4


@needs_tiny
def test_an_edited_photo_takes_eight_clicks(empty_page: Page, language: str) -> None:
    choose_template(empty_page, "Image to Image.app", language)
    with empty_page.tab.expect_file_chooser() as chosen:
        empty_page.tab.locator("[data-slot=drop-zone-indicator]").click()
    chosen.value.set_files(SAMPLES / "stable_cascade_circle.png")
    write_prompt(empty_page, "a large red circle on a yellow background, center")
    assert empty_page.run() == "execution_success"
    found = describe(result(empty_page))
    assert (found.background, [item.color for item in found.items]) == ("yellow", ["red"])
    assert empty_page.tab.evaluate("window.clicks") + FILE_CHOOSER <= 8
