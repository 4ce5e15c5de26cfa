"""The images beside the templates are what they make: `pytest tests/nodes --update-images` runs them for it."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.nodes.image_checks import needs_tiny
from tests.nodes.test_workflows import run
from tests.nodes.workflows import ELSEWHERE, FOLDER, NAMES, workflow


def sheet(images: list[Image.Image], side: int = 512) -> Image.Image:
    """All images: square ones in rows of two, others below each other."""
    columns = min(2, len(images)) if all(each.width == each.height for each in images) else 1
    cell = side // columns
    small = [each.resize((cell, round(each.height * cell / each.width)), Image.LANCZOS) for each in images]
    rows = [small[i : i + columns] for i in range(0, len(small), columns)]
    whole = Image.new("RGB", (side, sum(row[0].height for row in rows)), "white")
    top = 0
    for row in rows:
        for i, each in enumerate(row):
            whole.paste(each, (i * cell, top))
        top += row[0].height
    return whole


@needs_tiny
@pytest.mark.usefixtures("no_merged_file_stays")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_a_template_makes_its_image(host: Any, request: pytest.FixtureRequest, name: str) -> None:
    if not request.config.getoption("--update-images"):
        pytest.skip("writes files: --update-images")
    sheet(run(host, workflow(name))).save(FOLDER / f"{name}.jpg", quality=90)
