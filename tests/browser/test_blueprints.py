"""The subgraph blueprints: found by search, put down, run and opened."""

from __future__ import annotations

import pytest

from cascade.tiny.analysis import describe
from tests.browser.driving import Page
from tests.nodes.image_checks import needs_tiny
from tests.nodes.workflows import ROOT

NAMES = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json"))
SHOWN = {
    "Text to Image (Stable Cascade)": ("blue", "red", 256),
    "Image to Image (Stable Cascade)": ("blue", "green", 256),
    "Inpaint (Stable Cascade)": ("blue", "yellow", 256),
    "Upscale (Stable Cascade)": ("blue", "red", 512),
}
"""Background and color of the shape in what they make of the templates' image and their own prompt, and its side."""

CONNECT = """(title) => {
    const node = app.graph.nodes.find((each) => each.title === title);
    const add = (type, x) => {
        const made = LiteGraph.createNode(type);
        made.pos = [x, 0];
        app.graph.add(made);
        return made;
    };
    const input = (name) => node.inputs.findIndex((each) => each.name === name);
    if (input("image") >= 0) {
        const source = add("LoadImage", -600);
        const widget = source.widgets.find((each) => each.name === "image");
        widget.value = "stable_cascade_square_masked.png";
        source.connect(0, node, input("image"));
        if (input("mask") >= 0) source.connect(1, node, input("mask"));
    }
    node.connect(0, add("SaveImage", 900), 0);
}"""


def test_there_are_blueprints() -> None:
    assert sorted(SHOWN) == NAMES


@needs_tiny
@pytest.mark.parametrize("name", NAMES)
def test_a_blueprint_is_found_put_down_and_run(page: Page, name: str) -> None:
    page.put_sample("stable_cascade_square_masked.png")
    page.open({"nodes": [], "links": [], "version": 0.4})
    page.add_by_search(name)
    page.tab.wait_for_function("(name) => app.graph.nodes.some((node) => node.title === name)", arg=name)
    page.tab.evaluate(CONNECT, name)
    assert page.run() == "execution_success"
    image = page.image("SaveImage")
    background, color, side = SHOWN[name]
    assert image.shape == (side, side, 3)
    found = describe(image[:: side // 256, :: side // 256])
    # At twice its size the tiny cascade often draws a shape more than once; its card says how often.
    assert (found.background, {item.color for item in found.items}) == (background, {color})


def test_a_blueprint_opens_into_our_nodes(page: Page) -> None:
    page.open({"nodes": [], "links": [], "version": 0.4})
    page.add_by_search("Text to Image (Stable Cascade)")
    page.tab.wait_for_function("app.graph.nodes.length === 1")
    page.tab.evaluate("app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
    types = page.tab.evaluate("app.canvas.graph.nodes.map((node) => node.type)")
    assert len(types) == 6
    assert all(kind.startswith("Cascade") for kind in types)
