"""Makes `cascade` and `tests.support` importable, whichever way pytest was started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Appended, never put first: ahead of a ComfyUI host our `nodes/` would hide its `nodes.py`.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-schemas", action="store_true", help="write tests/nodes/schemas.json anew")
    parser.addoption("--update-images", action="store_true", help="make the images of templates and pages anew")
