"""The pictures beside the templates are what they make: `pytest tests/nodes --update-pictures` runs them for it."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.nodes.pictures import needs_tiny
from tests.nodes.test_workflows import run
from tests.nodes.workflows import ELSEWHERE, FOLDER, NAMES, workflow


def sheet(pictures: list[Image.Image], side: int = 512) -> Image.Image:
    """All pictures: square ones in rows of two, wide ones below each other."""
    columns = min(2, len(pictures)) if pictures[0].width < 1.5 * pictures[0].height else 1
    scale = side / (columns * pictures[0].width)
    small = [each.resize((round(each.width * scale), round(each.height * scale)), Image.LANCZOS) for each in pictures]
    width, height = small[0].size
    whole = Image.new("RGB", (columns * width, -(-len(small) // columns) * height), "white")
    for i, each in enumerate(small):
        whole.paste(each, (i % columns * width, i // columns * height))
    return whole


@needs_tiny
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_a_template_makes_its_picture(host: Any, request: pytest.FixtureRequest, name: str) -> None:
    if not request.config.getoption("--update-pictures"):
        pytest.skip("writes files: --update-pictures")
    sheet(run(host, workflow(name))).save(FOLDER / f"{name}.jpg", quality=90)
