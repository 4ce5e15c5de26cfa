"""Makes `cascade` and `tests.support` importable, whichever way pytest was started, and chance the same every time.

`--hypothesis-seed=N` draws other inputs, for hypothesis and for what mutates files (`nox -s fuzz`).
CASCADE_TEST_MISALIGNED=1 has weights lie where a foreign file may put them (`nox -s numerics`).
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from pathlib import Path

import hypothesis
import pytest

# Appended, never put first: ahead of a ComfyUI host our `nodes/` would hide its `nodes.py`.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-schemas", action="store_true", help="write tests/nodes/schemas.json anew")


def pytest_configure(config: pytest.Config) -> None:
    fixed = config.getoption("--hypothesis-seed") is None
    # No deadline: the first call of a process pays for imports.
    hypothesis.settings.register_profile("project", derandomize=fixed, deadline=None)
    hypothesis.settings.load_profile("project")
    if os.environ.get("CASCADE_TEST_MISALIGNED"):
        from cascade.checkpoints import sources
        from tests.support import MisalignedFile

        sources.safe_open = MisalignedFile


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws does not depend on the tests before it in the same process."""
    import torch

    torch.manual_seed(zlib.crc32(item.nodeid.encode()))


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Chance of a test's own."""
    return random.Random(f"{request.config.getoption('--hypothesis-seed')} {request.node.nodeid}")
