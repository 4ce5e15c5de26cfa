"""Makes the images of README, help pages and templates again: `python -m tests.browser.make_images [TEMPLATE ...]`.

It runs every template, or those that are named, on ComfyUI's page, in Chromium; COMFYUI_PATH says where ComfyUI lies.
All of them take about six minutes on a CPU that has nothing else to do.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from PIL import Image
from playwright.sync_api import Browser

from tests.browser.driving import Page, tiny_page
from tests.nodes.workflows import ELSEWHERE, FOLDER, NAMES, ROOT, nodes_of, workflow
from tests.server.serving import Server

APP = ROOT / "docs" / "images" / "app.png"
HELP = ROOT / "web" / "docs" / "images"
TINY = "tiny cascade (included)"
APP_ENDING = ".app"
PREVIEWED = "Batch and seeds"
"""Its image shows the first four previews: what it saves is only one of them."""
MARGIN = 60
WINDOW = {"width": 2400, "height": 1600}
APP_WINDOW = {"width": 1280, "height": 720}
WIDEST = 1600
LANCZOS = Image.Resampling.LANCZOS
SHEET = 512
"""Width of the image beside a template."""


def main() -> int:
    shown: set[str] = set()
    with tiny_page() as (server, browser):
        for name in sys.argv[1:] or NAMES:
            template(server, browser, name, shown)
    return 0


def template(server: Server, browser: Browser, name: str, shown: set[str]) -> None:
    """The image beside a template, and those of its nodes that are not in `shown`, to which they are added."""
    print(name, flush=True)
    stand_ins(server, workflow(name))
    page = Page(browser, server)
    target = FOLDER / f"{name}.jpg"
    if name.endswith(APP_ENDING):
        window = app(server, page, name)
        window.resize((SHEET, SHEET * window.height // window.width), LANCZOS).save(target, quality=90)
        if name == "Image to Image" + APP_ENDING:
            window.save(APP, optimize=True)
    else:
        nodes(page, name, shown)
        page.open(with_tiny(workflow(name)))
        if name in ELSEWHERE:
            graph(page).save(target, quality=85, optimize=True)
        else:
            sheet(saved(server, page, "temp")[:4] if name == PREVIEWED else saved(server, page)).save(
                target, quality=90
            )
    page.tab.close()
    if page.problems:
        raise RuntimeError(f"{name}: {page.problems}")


def stand_ins(server: Server, flow: dict[str, Any]) -> None:
    """Empty files for ComfyUI's own loaders, whose nodes would be marked as wrong."""
    for node in nodes_of(flow):
        if not node["type"].startswith("Cascade"):
            for model in node["properties"].get("models", ()):
                path = server.base / "models" / model["directory"] / model["name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()


def nodes(page: Page, name: str, shown: set[str]) -> None:
    """The images of a template's nodes that are not in `shown`, to which they are added: each alone on the canvas."""
    for node in nodes_of(with_tiny(workflow(name))):
        kind = node["type"]
        if not kind.startswith("Cascade") or kind in shown:
            continue
        for slot in node["inputs"]:
            slot["link"] = None
        for slot in node["outputs"]:
            slot["links"] = None
        page.open({"nodes": [node], "links": [], "version": 0.4})
        page.settle()
        left, top, width, height = page.box(kind)
        area = (left - MARGIN, top - MARGIN / 2, width + 2 * MARGIN, height + MARGIN)
        page.photograph(area).save(HELP / f"{kind}.jpg", quality=85, optimize=True)
        shown.add(kind)


def with_tiny(flow: dict[str, Any]) -> dict[str, Any]:
    """The template with the tiny cascade in place of files to be fetched, which the page would report as missing."""
    for node in nodes_of(flow):
        fetched = {model["name"] for model in node["properties"].pop("models", ())}
        if node["type"].startswith("Cascade"):
            node["widgets_values"] = [TINY if value in fetched else value for value in node.get("widgets_values", ())]
    return flow


def saved(server: Server, page: Page, folder: str = "output") -> list[Image.Image]:
    """Run what the page shows; what it wrote into a folder, in order."""
    written = server.base / folder
    before = set(written.rglob("*.png"))
    if (event := page.run()) != "execution_success":
        raise RuntimeError(f"{event}\n{server.log()[-4000:]}")
    paths = sorted(set(written.rglob("*.png")) - before, key=lambda path: path.stat().st_mtime_ns)
    return [Image.open(path).convert("RGB") for path in paths]


def app(server: Server, page: Page, name: str) -> Image.Image:
    """The window with an app and its result."""
    page.tab.set_viewport_size(APP_WINDOW)
    page.open_template(name)
    page.tab.get_by_test_id("linear-run-button").first.wait_for()
    saved(server, page)
    page.tab.get_by_test_id("linear-image-output").first.wait_for()
    page.settle()
    return Image.open(io.BytesIO(page.tab.screenshot())).convert("RGB")


def graph(page: Page) -> Image.Image:
    """The whole graph, in a window so large that the page shows all texts."""
    page.tab.set_viewport_size(WINDOW)
    boxes = [box for _, box in page.boxes()]
    left, top = min(box[0] for box in boxes) - MARGIN, min(box[1] for box in boxes) - MARGIN
    right, bottom = (max(box[side] + box[side + 2] for box in boxes) + MARGIN for side in (0, 1))
    image = page.photograph((left, top, right - left, bottom - top))
    image.thumbnail((WIDEST, WIDEST), LANCZOS)
    return image


def sheet(images: list[Image.Image]) -> Image.Image:
    """All images: square ones in rows of two, others below each other."""
    columns = min(2, len(images)) if all(each.width == each.height for each in images) else 1
    cell = SHEET // columns
    small = [each.resize((cell, round(each.height * cell / each.width)), LANCZOS) for each in images]
    rows = [small[i : i + columns] for i in range(0, len(small), columns)]
    whole = Image.new("RGB", (SHEET, sum(row[0].height for row in rows)), "white")
    top = 0
    for row in rows:
        for i, each in enumerate(row):
            whole.paste(each, (i * cell, top))
        top += row[0].height
    return whole


if __name__ == "__main__":
    sys.exit(main())
