"""The page in Chinese, and what the search finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.driving import Page
from tests.nodes.locales import FOLDER
from tests.nodes.workflows import workflow

TEMPLATE = "Text to Image (tiny, no download)"
CHINESE = json.loads((FOLDER / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.fixture
def chinese(page: Page) -> Iterator[Page]:
    page.speak("zh")
    yield page
    page.speak("en")


def test_nodes_are_in_chinese(chinese: Page) -> None:
    chinese.open(workflow(TEMPLATE))
    names: dict[str, Any] = CHINESE["CascadeSampleStageC"]
    found = chinese.tab.evaluate(
        f"""() => {{
            const node = {chinese.find("CascadeSampleStageC")};
            return {{
                title: LiteGraph.registered_node_types.CascadeSampleStageC.title,
                category: LiteGraph.registered_node_types.CascadeLoadLora.category,
                widget: node.widgets.find((each) => each.name === "sampler_name").label,
                input: node.inputs.find((each) => each.name === "latent_image").localized_name,
                output: {chinese.find("CascadeTextEncode")}.outputs[1].localized_name,
            }};
        }}"""
    )
    assert found == {
        "title": names["display_name"],
        "category": "Stable Cascade/LoRA",
        "widget": names["inputs"]["sampler_name"]["name"],
        "input": names["inputs"]["latent_image"]["name"],
        "output": CHINESE["CascadeTextEncode"]["outputs"]["1"]["name"],
    }


def test_help_is_in_chinese_with_its_image(chinese: Page) -> None:
    chinese.open(workflow(TEMPLATE))
    chinese.select("CascadeDecode")
    chinese.tab.get_by_test_id("info-button").click()
    title = CHINESE["CascadeDecode"]["display_name"]
    chinese.tab.locator(".node-help-content h1", has_text=title).wait_for()
    chinese.tab.wait_for_function("document.querySelector('.node-help-content img')?.naturalWidth > 0")


def test_the_status_of_a_loader_is_in_chinese(chinese: Page) -> None:
    chinese.open(workflow("Text to Image (Stable Cascade)"))
    chinese.wait_for_note("CascadeLoadStageC", "此文件不在 ComfyUI 的文件夹中。")


def test_settings_and_commands_are_in_chinese(chinese: Page) -> None:
    chinese.run_command("Comfy.ShowSettingsDialog")
    chinese.tab.get_by_text("Stable Cascade", exact=True).first.click()
    chinese.tab.get_by_text("新建空 Latent 节点的尺寸预设").wait_for()


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("wuerstchen", "CascadeLoadStageC"),
        ("ipadapter", "CascadeImageVariation"),
        ("ksampler", "CascadeSampleStageC"),
        ("sampler", "CascadeSampleStageC"),
        ("prompt", "CascadeTextEncode"),
        ("clip text encode", "CascadeTextEncode"),
        ("cfg", "CascadeGuider"),
        ("load checkpoint", "CascadeLoadCheckpoint"),
        ("empty latent", "CascadeEmptyLatent"),
    ],
)
def test_the_search_finds_nodes_by_the_words_of_others(page: Page, query: str, wanted: str) -> None:
    """ComfyUI ranks by the node's own name, and lists what an alias alone matches after that."""
    found = page.tab.evaluate(
        """(query) => {
            const page = document.querySelector("#vue-app").__vue_app__.config.globalProperties;
            return page.$pinia._s.get("nodeDef").nodeSearchService.searchNode(query).map((node) => node.name);
        }""",
        query,
    )
    assert wanted in found
