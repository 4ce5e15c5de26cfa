"""Our settings and commands on the page, and the status line of the loaders."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.browser.driving import Page
from tests.nodes.networks import file_name
from tests.nodes.workflows import workflow

TEMPLATE = "Text to Image (tiny, no download)"


def choose(page: Page, name: str, value: object) -> None:
    page.tab.evaluate(
        "([name, value]) => app.extensionManager.setting.set(name, value)", [f"StableCascade.{name}", value]
    )


@pytest.fixture
def settings(page: Page) -> Iterator[Page]:
    """A page whose settings are the defaults again afterwards."""
    yield page
    choose(page, "Preset", "256 x 256 (tiny cascade)")
    choose(page, "FileNotes", True)
    choose(page, "PreviewSize", 512)


def preset_of_a_new_node(page: Page) -> str:
    return page.tab.evaluate(
        """() => {
            const node = LiteGraph.createNode("CascadeEmptyLatent");
            app.graph.add(node);
            return node.widgets.find((each) => each.name === "preset").value;
        }"""
    )


def test_new_nodes_have_the_preset_and_saved_ones_keep_theirs(settings: Page) -> None:
    choose(settings, "Preset", "832 x 1248 (2:3)")
    assert preset_of_a_new_node(settings) == "832 x 1248 (2:3)"
    settings.open(workflow(TEMPLATE))
    kept = f"{settings.find('CascadeEmptyLatent')}.widgets.find((each) => each.name === 'preset').value"
    assert settings.tab.evaluate(kept) == "256 x 256 (tiny cascade)"


def test_what_is_set_is_what_the_server_reads(settings: Page) -> None:
    choose(settings, "PreviewSize", 128)
    file = settings.server.base / "user" / "default" / "comfy.settings.json"
    assert json.loads(file.read_text(encoding="utf-8"))["StableCascade.PreviewSize"] == 128


def test_settings_have_their_place(page: Page) -> None:
    page.run_command("Comfy.ShowSettingsDialog")
    page.tab.get_by_text("Stable Cascade", exact=True).first.click()
    for name in ("Size preset of new Empty Latent nodes", "Loaders show what the chosen file is"):
        page.tab.get_by_text(name).wait_for()


def test_notes_on_loaders_can_be_switched_off(settings: Page) -> None:
    choose(settings, "FileNotes", False)
    settings.open(workflow("Text to Image (Stable Cascade)"))
    names = settings.tab.evaluate(f"{settings.find('CascadeLoadStageC')}.widgets.map((each) => each.name)")
    assert "note" not in names


def test_a_loader_tells_the_memory_of_the_chosen_format(page: Page) -> None:
    page.open(workflow("Text to Image (Stable Cascade)"))
    page.choose("CascadeLoadStageC", "unet_name", file_name("stage_c"))
    page.choose("CascadeLoadStageC", "weight_dtype", "fp32")
    page.wait_for_note("CascadeLoadStageC", "2 MB in memory")
    page.choose("CascadeLoadStageC", "weight_dtype", "bf16")
    page.wait_for_note("CascadeLoadStageC", "1 MB in memory")


def test_notes_are_reached_by_keyboard_and_read_aloud(page: Page) -> None:
    page.open(workflow(TEMPLATE))
    page.wait_for_note("CascadeEmptyLatent", "256 x 256")
    note = page.tab.locator(".stable-cascade-note").first
    note.focus()
    assert note.evaluate("(element) => document.activeElement === element")
    assert note.get_attribute("role") == "status"


def test_templates_and_free_memory_are_commands_of_the_menu(page: Page) -> None:
    page.run_command("StableCascade.Templates")
    page.tab.get_by_test_id("template-workflows-content").wait_for()
    page.tab.keyboard.press("Escape")
    with page.tab.expect_request("**/free") as asked:
        page.run_command("StableCascade.FreeMemory")
    assert json.loads(asked.value.post_data or "") == {"unload_models": True, "free_memory": True}
    page.tab.get_by_text("Memory will be freed as soon as nothing runs.").wait_for()
