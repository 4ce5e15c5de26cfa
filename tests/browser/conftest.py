"""Opens the page of a real ComfyUI in Debian's Chromium; COMFYUI_PATH says where the host lies."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

HOST = os.environ.get("COMFYUI_PATH")
collect_ignore_glob = [] if HOST else ["test_*.py"]

if HOST:
    from playwright.sync_api import Browser, sync_playwright

    from tests.browser.driving import Page, launch
    from tests.server.serving import Server, start

    @pytest.fixture(scope="session")
    def server() -> Iterator[Server]:
        running = start(HOST)
        yield running
        running.stop()

    @pytest.fixture(scope="session")
    def browser() -> Iterator[Browser]:
        with sync_playwright() as playwright:
            opened = launch(playwright)
            yield opened
            opened.close()

    @pytest.fixture
    def page(server: Server, browser: Browser) -> Iterator[Page]:
        """A fresh page. Whatever is wrong with it in the end fails the test."""
        opened = Page(browser, server)
        yield opened
        opened.tab.close()
        assert opened.problems == []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not HOST:
        terminalreporter.write_line("tests/browser did not run: no ComfyUI (COMFYUI_PATH). `nox -s hosts` fetches one.")
