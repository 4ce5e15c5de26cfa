"""A template from the list to the image; what our scripts show on the page; the help beside it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from tests.browser.driving import Box, Page
from tests.nodes.image_checks import needs_tiny, wrong
from tests.nodes.networks import file_name
from tests.nodes.workflows import NAMES, workflow

TEMPLATE = "Text to Image (tiny, no download)"
TINY = "tiny cascade (included)"


@needs_tiny
def test_a_template_is_opened_and_run(page: Page) -> None:
    page.open_template(TEMPLATE)
    [prompt] = [
        node["widgets_values"][0] for node in workflow(TEMPLATE)["nodes"] if node["type"] == "CascadeTextEncode"
    ]
    assert page.run() == "execution_success"
    image = page.image("SaveImage")
    assert image.shape == (256, 256, 3)
    assert wrong(prompt, image) == []
    shown = np.asarray(page.photograph(page.box("SaveImage")), dtype=int)
    background = np.median(image[:8].reshape(-1, 3), axis=0)
    assert (np.abs(shown - background).max(axis=-1) < 24).mean() > 0.1


def overlap(a: Box, b: Box) -> bool:
    return all(a[side] < b[side] + b[side + 2] and b[side] < a[side] + a[side + 2] for side in (0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_templates_open_without_complaint(page: Page, name: str) -> None:
    page.open_template(name)
    types = page.tab.evaluate("app.graph.nodes.map((node) => node.type)")
    assert sorted(types) == sorted(node["type"] for node in workflow(name)["nodes"])
    assert [(one, other) for (one, a), (other, b) in combinations(page.boxes(), 2) if overlap(a, b)] == []


def test_the_size_node_shows_sizes(page: Page) -> None:
    page.open(workflow(TEMPLATE))
    page.wait_for_note("CascadeEmptyLatent", "256 x 256 pixels")
    page.choose("CascadeEmptyLatent", "preset", "1024 x 1024 (1:1)")
    assert page.note("CascadeEmptyLatent").splitlines() == ["1024 x 1024 pixels", "Stage C 24 x 24, Stage B 256 x 256"]
    page.choose("CascadeEmptyLatent", "width", 4096)
    page.choose("CascadeEmptyLatent", "height", 4096)
    assert "things may repeat" in page.note("CascadeEmptyLatent")


def size(page: Page) -> list[Any]:
    return page.tab.evaluate(f"{page.find('CascadeEmptyLatent')}.widgets.slice(0, 3).map((widget) => widget.value)")


def test_preset_and_numbers_say_the_same(page: Page) -> None:
    page.open(workflow(TEMPLATE))
    page.wait_for_note("CascadeEmptyLatent", "256 x 256 pixels")
    page.choose("CascadeEmptyLatent", "preset", "1376 x 768 (16:9)")
    assert size(page) == ["1376 x 768 (16:9)", 1376, 768]
    page.choose("CascadeEmptyLatent", "height", 736)
    assert size(page) == ["custom", 1376, 736]
    page.choose("CascadeEmptyLatent", "width", 1440)
    assert size(page) == ["1440 x 736 (2:1)", 1440, 736]
    page.choose("CascadeEmptyLatent", "preset", "custom")
    assert size(page) == ["custom", 1440, 736]


def test_a_new_size_node_follows_the_model_until_somebody_chooses(page: Page) -> None:
    page.open({"nodes": [], "links": [], "version": 0.4})
    page.tab.evaluate(
        """() => {
            const add = (type) => {
                const node = LiteGraph.createNode(type);
                app.graph.add(node);
                return node;
            };
            window.parts = ["CascadeLoadStageC", "CascadeSampleStageC", "CascadeEmptyLatent"].map(add);
        }"""
    )
    page.tab.evaluate("() => { parts[2].connect(0, parts[1], 'latent_image'); parts[0].connect(0, parts[1], 'model') }")
    assert size(page) == ["256 x 256 (tiny cascade)", 256, 256]
    page.choose("CascadeLoadStageC", "unet_name", file_name("stage_c"))
    page.wait_for_note("CascadeEmptyLatent", "1024 x 1024 pixels")
    assert size(page) == ["1024 x 1024 (1:1)", 1024, 1024]
    page.choose("CascadeEmptyLatent", "preset", "832 x 1248 (2:3)")
    page.choose("CascadeLoadStageC", "unet_name", TINY)
    assert size(page) == ["832 x 1248 (2:3)", 832, 1248]


def test_loaders_show_what_a_file_is(page: Page) -> None:
    page.open(workflow("Text to Image (Stable Cascade)"))
    page.wait_for_note("CascadeLoadStageC", "This file is not in ComfyUI's folders.")
    page.choose("CascadeLoadStageC", "unet_name", file_name("stage_c"))
    page.wait_for_note("CascadeLoadStageC", "Stage C")
    page.choose("CascadeLoadStageC", "unet_name", file_name("stage_b"))
    page.wait_for_note("CascadeLoadStageC", "it belongs in diffusion_models")


def test_notes_are_not_saved(page: Page) -> None:
    """They belong to the page: a workflow keeps only what the artist chose."""
    flow = workflow(TEMPLATE)
    page.open(flow)
    page.wait_for_note("CascadeEmptyLatent", "pixels")
    saved = {node["id"]: node.get("widgets_values") for node in page.tab.evaluate("app.graph.serialize()")["nodes"]}
    assert saved == {node["id"]: node.get("widgets_values") for node in flow["nodes"]}


def test_help_has_its_image(page: Page) -> None:
    page.open(workflow(TEMPLATE))
    page.select("CascadeDecode")
    page.tab.get_by_test_id("info-button").click()
    page.tab.locator(".node-help-content h1", has_text="Decode (Stable Cascade)").wait_for()
    page.tab.wait_for_function("document.querySelector('.node-help-content img')?.naturalWidth > 0")
