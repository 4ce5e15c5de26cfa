"""Every template as an artist meets it: readable, and nothing over anything else, before and after a run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from tests.browser.driving import Box, Page
from tests.nodes.image_checks import needs_tiny
from tests.nodes.workflows import CHAINS, NAMES, nodes_of, workflow

LAPTOP, DESKTOP = {"width": 1440, "height": 900}, {"width": 1920, "height": 1080}
READABLE = "app.canvas.ds.scale * LiteGraph.NODE_TEXT_SIZE >= app.canvas.min_font_size_for_lod"
"""Whether the page draws the texts of nodes at its zoom."""
GROUP_TITLE = 34
SHORT = {
    "CascadeTrainLora": {"steps": 2, "batch_size": 1, "class_folder": ""},
    "CascadeTrainControlNet": {"steps": 2, "batch_size": 1},
    "CascadeFinetune": {"steps": 2, "batch_size": 1},
}
"""Widgets to choose so that a run takes seconds."""
NOT_RUN = {"Face Identity"}
"""Stops with a message: it needs a face detector."""


def overlap(a: Box, b: Box) -> bool:
    return all(a[side] < b[side] + b[side + 2] and b[side] < a[side] + a[side + 2] for side in (0, 1))


def overlaps(page: Page) -> list[tuple[str, str]]:
    """Nodes that lie over each other, or over the title of a group."""
    nodes = page.boxes()
    groups = page.tab.evaluate("app.graph.groups.map((group) => [group.title, [...group.pos, ...group.size]])")
    titles = [(title, (left, top, width, GROUP_TITLE)) for title, (left, top, width, _) in groups]
    pairs = [*combinations(nodes, 2), *((node, title) for node in nodes for title in titles)]
    return [(one, other) for (one, a), (other, b) in pairs if overlap(a, b)]


def as_saved(name: str) -> dict[str, Any]:
    flow = workflow(name)
    for node in flow["nodes"]:
        del node["order"]
    return flow


@pytest.fixture
def live_previews(page: Page) -> Iterator[None]:
    """The most that nodes grow in a run: ComfyUI shows no previews before somebody asks for them."""
    choose = "(method) => app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', method)"
    page.tab.evaluate(choose, "auto")
    yield
    page.tab.evaluate(choose, "default")


def needs_downloads(name: str) -> bool:
    return any(node["properties"].get("models") for node in nodes_of(workflow(name)))


ALWAYS = ("Canny", "LoRA")
"""The fullest templates. All of them take a quarter of an hour: `nox -s hosts -- 0.30.0 -m slow`."""


@needs_tiny
@pytest.mark.usefixtures("live_previews")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in NAMES]
)
def test_a_template_is_readable_before_and_after_a_run(page: Page, name: str) -> None:
    page.open_template(name)
    page.show_graph()
    # The chains have two models in one graph: on a laptop that is too much.
    for window in (DESKTOP,) if name in CHAINS else (LAPTOP, DESKTOP):
        page.tab.set_viewport_size(window)
        page.settle()
        page.run_command("Comfy.Canvas.FitView")
        page.settle()
        assert page.tab.evaluate(READABLE), (window, page.tab.evaluate("app.canvas.ds.scale"))
    assert overlaps(page) == []
    assert page.saved() == as_saved(name)
    if needs_downloads(name) or name in NOT_RUN:
        return
    for node, values in SHORT.items():
        if page.has(node):
            for widget, value in values.items():
                page.choose(node, widget, value)
    assert page.run() == "execution_success"
    assert overlaps(page) == []
