"""The images of the README and the help pages come from the page itself: `pytest tests/browser --update-images`."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.browser.driving import Page
from tests.nodes.image_checks import needs_tiny
from tests.nodes.workflows import ELSEWHERE, FOLDER, NAMES, ROOT, nodes_of, workflow

GRAPH = ROOT / "docs" / "images" / "graph.png"
HELP = ROOT / "web" / "docs" / "images"
TINY = "tiny cascade (included)"
TEMPLATE = "Text to Image (tiny, no download)"
MARGIN = 60
WINDOW = {"width": 2400, "height": 1600}
WIDEST = 1600


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--update-images", default=False):
        pytest.skip("writes files: --update-images")


@needs_tiny
def test_the_graph_of_the_readme(page: Page) -> None:
    page.open_template(TEMPLATE)
    assert page.run() == "execution_success"
    page.image("SaveImage")
    graph(page).save(GRAPH, optimize=True)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_template_that_needs_more_shows_its_graph(page: Page, name: str) -> None:
    page.open(with_tiny(workflow(name)))
    graph(page).save(FOLDER / f"{name}.jpg", quality=85, optimize=True)


def test_each_node_in_a_graph(page: Page) -> None:
    """In the first template that has it, with the ends of its links."""
    HELP.mkdir(exist_ok=True)
    taken: set[str] = set()
    for name in NAMES:
        kinds = {node["type"] for node in nodes_of(workflow(name)) if node["type"].startswith("Cascade")} - taken
        if kinds:
            page.open(with_tiny(workflow(name)))
        for kind in sorted(kinds):
            left, top, width, height = page.box(kind)
            area = (left - MARGIN, top - MARGIN / 2, width + 2 * MARGIN, height + MARGIN)
            page.photograph(area).save(HELP / f"{kind}.jpg", quality=85, optimize=True)
        taken |= kinds


def graph(page: Page) -> Image.Image:
    """All of it, in a window in which the page does not leave the words out."""
    page.tab.set_viewport_size(WINDOW)
    boxes = [box for _, box in page.boxes()]
    left, top = min(box[0] for box in boxes) - MARGIN, min(box[1] for box in boxes) - MARGIN
    right, bottom = (max(box[side] + box[side + 2] for box in boxes) + MARGIN for side in (0, 1))
    image = page.photograph((left, top, right - left, bottom - top))
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    return image


def with_tiny(flow: dict[str, Any]) -> dict[str, Any]:
    """The template with the tiny cascade where it names files to be fetched, of which the page would complain."""
    for node in nodes_of(flow):
        fetched = {model["name"] for model in node["properties"].pop("models", ())}
        node["widgets_values"] = [TINY if value in fetched else value for value in node.get("widgets_values", ())]
    return flow
