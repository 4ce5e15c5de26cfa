"""Starts a real ComfyUI as a server; COMFYUI_PATH says where it lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

HOST = os.environ.get("COMFYUI_PATH")
collect_ignore_glob = [] if HOST else ["test_*.py"]

if HOST:
    from tests.server.serving import Server, start

    @pytest.fixture(scope="session")
    def server() -> Iterator[Server]:
        running = start(HOST)
        yield running
        running.stop()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not HOST:
        terminalreporter.write_line("tests/server did not run: no ComfyUI (COMFYUI_PATH). `nox -s hosts` fetches one.")
