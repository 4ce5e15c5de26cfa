"""Starts a real ComfyUI in this process, with this pack in its custom_nodes; COMFYUI_PATH says where it lies.

`nox -s hosts` fetches hosts and runs these tests on each. Without a host there is nothing here to run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the page would be told of progress: (value, total, preview)."""
    import comfy.utils

    seen: list[Any] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: seen.append((value, total, preview))
    )
    return seen


@pytest.fixture
def no_merged_file_stays(host: Any) -> Iterator[None]:
    """Other tests' searches would find it: a second Stage C."""
    yield
    for path in (host.models / "diffusion_models").glob("merged_*"):
        path.unlink()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not HOST:
        terminalreporter.write_line("tests/nodes did not run: no ComfyUI (COMFYUI_PATH). `nox -s hosts` fetches one.")
