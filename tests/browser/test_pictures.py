"""The pictures of the README and the help pages come from the page itself: `pytest tests/browser --update-pictures`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.driving import Page
from tests.nodes.pictures import needs_tiny
from tests.nodes.workflows import NAMES, ROOT, nodes_of, workflow

GRAPH = ROOT / "docs" / "images" / "graph.png"
HELP = ROOT / "web" / "docs" / "images"
TEMPLATE = "Text to Image (tiny, no download)"
MARGIN = 60


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--update-pictures"):
        pytest.skip("writes files: --update-pictures")


@needs_tiny
def test_the_graph_of_the_readme(page: Page) -> None:
    page.open_template(TEMPLATE)
    assert page.run() == "execution_success"
    page.picture("SaveImage")
    boxes = [page.box(node["type"]) for node in workflow(TEMPLATE)["nodes"]]
    left, top = min(box[0] for box in boxes) - MARGIN, min(box[1] for box in boxes) - MARGIN
    right, bottom = (max(box[side] + box[side + 2] for box in boxes) + MARGIN for side in (0, 1))
    page.photograph((left, top, right - left, bottom - top)).save(GRAPH, optimize=True)


@pytest.mark.parametrize("name", NAMES)
def test_each_node_in_a_graph(page: Page, name: str) -> None:
    """In the first template that has it, with the ends of its links."""
    HELP.mkdir(exist_ok=True)
    page.open(workflow(name))
    for kind in dict.fromkeys(node["type"] for node in nodes_of(workflow(name))):
        if kind.startswith("Cascade") and first_with(kind) == name:
            left, top, width, height = page.box(kind)
            area = (left - MARGIN, top - MARGIN / 2, width + 2 * MARGIN, height + MARGIN)
            page.photograph(area).save(picture_of(kind), quality=85, optimize=True)


def first_with(kind: str) -> str:
    return next(name for name in NAMES if any(node["type"] == kind for node in nodes_of(workflow(name))))


def picture_of(kind: str) -> Path:
    return HELP / f"{kind}.jpg"
