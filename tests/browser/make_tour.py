"""Makes the animated image of the first minutes again: `python -m tests.browser.make_tour`.

From the list of templates to an image, and to another prompt's. COMFYUI_PATH says where ComfyUI lies.
"""

from __future__ import annotations

import io
import sys

from PIL import Image

from tests.browser.driving import Page, tiny_page
from tests.nodes.workflows import ROOT

TOUR = ROOT / "docs" / "images" / "tour.webp"
TEMPLATE = "Text to Image (tiny, no download)"
PROMPT = "a small yellow star on a purple background, right"
WINDOW = {"width": 1600, "height": 900}
SIZE = (1120, 630)
PAUSE = 1800
"""Milliseconds of a frame."""


def main() -> int:
    with tiny_page() as (server, browser):
        frames = tour(Page(browser, server))
    frames[0].save(TOUR, save_all=True, append_images=frames[1:], duration=PAUSE, loop=0, quality=70, method=6)
    return 0


def tour(page: Page) -> list[Image.Image]:
    """The page after each action of somebody who opens it for the first time."""
    page.tab.set_viewport_size(WINDOW)
    page.tab.evaluate("app.graph.clear()")
    page.tab.evaluate("app.canvas.show_info = false")
    frames = [shown(page)]
    page.run_command("Comfy.BrowseTemplates")
    card = page.tab.get_by_test_id(f"template-workflow-{TEMPLATE}")
    card.wait_for()
    card.scroll_into_view_if_needed()
    card.hover()
    frames.append(shown(page))
    card.click()
    page.tab.get_by_test_id("template-workflows-content").wait_for(state="detached")
    page.tab.wait_for_function("app.graph.nodes.some((node) => node.comfyClass?.startsWith('Cascade'))")
    page.run_command("Comfy.Canvas.FitView")
    frames.append(shown(page))
    frames += [run(page)] * 2
    page.choose("CascadeTextEncode", "positive", PROMPT)
    frames.append(shown(page))
    frames += [run(page)] * 2
    return frames


def run(page: Page) -> Image.Image:
    before = page.tab.evaluate(f"{page.find('SaveImage')}.imgs?.[0]?.src")
    if (event := page.run()) != "execution_success":
        raise RuntimeError(f"{event}\n{page.server.log()[-4000:]}")
    page.tab.wait_for_function(f"(before) => {page.find('SaveImage')}.imgs?.[0]?.src !== before", arg=before)
    page.image("SaveImage")
    return shown(page)


def shown(page: Page) -> Image.Image:
    page.tab.wait_for_timeout(1200)
    taken = Image.open(io.BytesIO(page.tab.screenshot())).convert("RGB")
    return taken.resize(SIZE, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())
