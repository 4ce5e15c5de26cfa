"""Starts a real ComfyUI in this process, with this pack in its custom_nodes; COMFYUI_PATH says where it lies.

`nox -s hosts` fetches hosts and runs these tests on each. Without a host there is nothing here to run.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

HOST = os.environ.get("COMFYUI_PATH")
collect_ignore_glob = [] if HOST else ["test_*.py"]

if HOST:
    from tests.nodes.hosting import boot

    BOOTED = boot(HOST)


@pytest.fixture(scope="session")
def host() -> Any:
    return BOOTED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-schemas", action="store_true", help="write tests/nodes/schemas.json anew")
    parser.addoption("--update-pictures", action="store_true", help="write the pictures of templates anew")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not HOST:
        terminalreporter.write_line("tests/nodes did not run: no ComfyUI (COMFYUI_PATH). `nox -s hosts` fetches one.")
