"""ComfyUI's page as an artist uses it."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Playwright, sync_playwright

from tests.nodes.workflows import SAMPLES
from tests.server.serving import Server, start

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1600, "height": 900}
PATIENCE = 120_000
"""Milliseconds, for slow machines."""
GRAPH_ALONE = (
    "* { visibility: hidden !important }#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important }"
)
"""A style: the canvas and what lies on its nodes, without bars, maps and messages."""
RUN = "[data-testid=queue-button]:visible, [data-testid=linear-run-button]:visible button:text-matches('Run|运行')"
"""The button, above the graph or in an app, in English or in Chinese."""
TITLE = 30
"""Height of a node's title, which lies above its position."""

NOT_OURS = ("user.css", "/api/userdata", "/templates/", "/workflow_templates/", "favicon", "/en.md")
"""Files for which the host's page asks in vain, in the address of the message: help pages by language come first."""
HOSTS_OWN = (
    "ComfyApp graph accessed before initialization",
    "Error loading core workflow templates",
    "Error loading fuse options",
    "Content Security Policy",
)
"""What the host's page says of itself: of templates that are not installed here, and of the addresses of files that
are not here, which it may not ask for their size."""

OF_THE_USER = ("ds", "frontendVersion", "workflowRendererVersion")
"""Of a workflow's `extra`: the view, and the page's versions."""

Box = tuple[float, float, float, float]
"""Left, top, width, height in the graph."""


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


@contextmanager
def tiny_page() -> Iterator[tuple[Server, Browser]]:
    """For a script: the ComfyUI that COMFYUI_PATH names with the tiny cascade, and a browser."""
    host = os.environ.get("COMFYUI_PATH")
    if not host:
        raise SystemExit("error: COMFYUI_PATH must name the folder of a ComfyUI")
    server = start(host, small=False)
    try:
        with sync_playwright() as playwright:
            browser = launch(playwright)
            yield server, browser
            browser.close()
    finally:
        server.stop()


APP = ".app"
"""How the names of templates end that open without nodes."""
WIDTH = "app.canvas.canvas.getBoundingClientRect().width"


class Page:
    """The page of a server in a tab of its own, open and ready."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self.server = server
        self.problems: list[str] = []
        self.tab = browser.new_page(viewport=SIZE)
        self.tab.set_default_timeout(PATIENCE)
        self.tab.on("console", self._heard)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.goto(server.url)
        self._wait_for_start()

    def _wait_for_start(self) -> None:
        """What is done before the page has opened its first workflow is lost: it opens that over it."""
        self.tab.wait_for_function("window.app?.extensionManager?.workflow?.activeWorkflow && app.graph.nodes.length")

    def _heard(self, message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        of_the_host = any(part in where for part in NOT_OURS) or any(part in message.text for part in HOSTS_OWN)
        if message.type == "error" and not of_the_host:
            self.problems.append(f"{message.text} ({where})")

    def speak(self, language: str) -> None:
        """Choose the page's language, and open it anew."""
        self.tab.evaluate("(language) => app.extensionManager.setting.set('Comfy.Locale', language)", language)
        self.tab.reload()
        self._wait_for_start()

    def run_command(self, command: str) -> None:
        self.tab.evaluate("(name) => app.extensionManager.command.execute(name)", command)

    def open_template(self, name: str) -> None:
        """As an artist does, from the list of templates. It is filtered first: a long list moves while it is read."""
        before = self.tab.evaluate("app.extensionManager.workflow.activeWorkflow.path")
        self.run_command("Comfy.BrowseTemplates")
        self.tab.locator("[data-testid^='template-workflow-']").first.wait_for()
        self.tab.locator("input[autofocus][placeholder='Search ...']").fill(name)
        self.tab.get_by_test_id(f"template-workflow-{name}").click()
        self.tab.get_by_test_id("template-workflows-content").wait_for(state="detached")
        opened = "(before) => app.extensionManager.workflow.activeWorkflow.path !== before && app.graph.nodes.length"
        self.tab.wait_for_function(opened, arg=before)
        if name.endswith(APP):
            self.tab.wait_for_function(f"{WIDTH} === 0")

    def add_by_search(self, name: str) -> None:
        """Search for a node, choose the first that is found, and put it down in the middle of the canvas."""
        self.run_command("Workspace.SearchBox.Toggle")
        self.tab.get_by_placeholder("Add a node...").fill(name)
        self.tab.get_by_test_id("result-item").first.filter(has_text=name).wait_for()
        self.tab.keyboard.press("Enter")
        self.tab.get_by_placeholder("Add a node...").wait_for(state="detached")
        self.tab.mouse.click(SIZE["width"] / 2, SIZE["height"] / 2)

    def put_sample(self, name: str) -> None:
        """Copy an image of the templates into the server's input folder."""
        target = self.server.base / "input" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(SAMPLES / name, target)

    def show_graph(self) -> None:
        """The nodes, also of a workflow that opens as an app."""
        self.tab.evaluate("app.extensionManager.workflow.activeWorkflow.activeMode = 'graph'")
        self.tab.wait_for_function(f"{WIDTH} > 0")

    def open(self, flow: dict[str, Any]) -> None:
        self.tab.evaluate("(flow) => app.loadGraphData(flow)", flow)

    def saved(self) -> dict[str, Any]:
        """The graph as the page saves it, without what it computes itself (the order of execution) and without what
        depends on the user: language, view, version of the page.
        """
        graph = self.tab.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")
        graph["extra"] = {name: value for name, value in graph.get("extra", {}).items() if name not in OF_THE_USER}
        for node in graph["nodes"]:
            del node["order"]
            for slot in (*node.get("inputs", ()), *node.get("outputs", ())):
                slot.pop("localized_name", None)
        return graph

    def run(self) -> str:
        """Press Run and wait; execution_success or what came instead."""
        self.tab.evaluate(
            """async () => {
                const { api } = await import("/scripts/api.js");
                const events = ["execution_success", "execution_error", "execution_interrupted"];
                window.finished = new Promise((resolve) => {
                    for (const event of events) api.addEventListener(event, () => resolve(event), { once: true });
                });
            }"""
        )
        self.tab.locator(RUN).first.click()
        return self.tab.evaluate("() => window.finished")

    def image(self, node: str) -> np.ndarray:
        """The image that a node of this type shows [H, W, 3], as the page has it."""
        find = f"app.graph.nodes.find((node) => node.type === '{node}').imgs?.[0]"
        self.tab.wait_for_function(f"{find}?.naturalWidth > 0")
        url = self.tab.evaluate(f"{find}.src")
        return np.asarray(Image.open(io.BytesIO(self.tab.request.get(url).body())).convert("RGB"))

    def note(self, node: str) -> str:
        """What our note on a node of this type says."""
        return self.tab.evaluate(f"{self._note(node)}.innerText")

    def wait_for_note(self, node: str, text: str) -> None:
        self.tab.wait_for_function(f"(text) => {self._note(node)}.innerText.includes(text)", arg=text)

    def _note(self, node: str) -> str:
        return f"{self.find(node)}.widgets.find((widget) => widget.name === 'note').element"

    def has(self, node: str) -> bool:
        return self.tab.evaluate(f"app.graph.nodes.some((node) => node.type === '{node}')")

    def find(self, node: str) -> str:
        """The node of a type, in the page's words."""
        return f"app.graph.nodes.find((node) => node.type === '{node}')"

    def choose(self, node: str, widget: str, value: Any) -> None:
        """Set a widget as a click on it does."""
        self.tab.evaluate(
            f"""([name, value]) => {{
                const widget = {self.find(node)}.widgets.find((each) => each.name === name);
                widget.value = value;
                widget.callback?.(value);
            }}""",
            [widget, value],
        )

    def show(self, left: float, top: float, width: float, height: float) -> dict[str, float]:
        """Move the canvas so that this part of the graph fills it; where it then lies in the window."""
        return self.tab.evaluate(
            """([left, top, width, height]) => {
                const { ds, canvas } = app.canvas;
                const there = canvas.getBoundingClientRect();
                ds.scale = Math.min(there.width / width, there.height / height, 1);
                ds.offset = [
                    there.width / ds.scale / 2 - left - width / 2, there.height / ds.scale / 2 - top - height / 2,
                ];
                app.canvas.setDirty(true, true);
                return {
                    x: there.x + (left + ds.offset[0]) * ds.scale, y: there.y + (top + ds.offset[1]) * ds.scale,
                    width: width * ds.scale, height: height * ds.scale,
                };
            }""",
            [left, top, width, height],
        )

    def box(self, node: str) -> Box:
        """Left, top, width and height of a node of this type, its title too, in the graph."""
        return self._with_title(self.tab.evaluate(f"[...{self.find(node)}.pos, ...{self.find(node)}.size]"))

    def boxes(self) -> list[tuple[str, Box]]:
        """Title and box of every node, once they have been drawn: a node grows to what its widgets need."""
        self.settle()
        found = self.tab.evaluate("app.graph.nodes.map((node) => [node.title, [...node.pos, ...node.size]])")
        return [(title, self._with_title(box)) for title, box in found]

    @staticmethod
    def _with_title(box: list[float]) -> Box:
        left, top, width, height = box
        return left, top - TITLE, width, height + TITLE

    def select(self, node: str) -> None:
        """Click on the title of a node of this type."""
        there = self.show(*self.box(node))
        # What is under the mouse is known from the frame after.
        self.settle()
        self.tab.mouse.click(there["x"] + there["width"] / 2, there["y"] + TITLE / 2)
        self.tab.wait_for_function(f"Object.values(app.canvas.selected_nodes).some((node) => node.type === '{node}')")

    def photograph(self, area: Box) -> Image.Image:
        """A part of the graph (left, top, width, height), without the bars that lie over the canvas."""
        bars = self.tab.add_style_tag(content=GRAPH_ALONE)
        self.tab.evaluate("app.canvas.show_info = false")
        clip = self.show(*area)
        self.settle()
        taken = Image.open(io.BytesIO(self.tab.screenshot(clip=clip)))
        bars.evaluate("(style) => style.remove()")
        return taken.convert("RGB")

    def settle(self) -> None:
        """The canvas and what lies on its nodes move in the frames after a change."""
        self.tab.evaluate("() => new Promise((done) => setTimeout(() => requestAnimationFrame(done), 500))")
