"""Where the parts of the tiny cascade lie."""

from __future__ import annotations

import pytest

from cascade import tiny


def test_paths() -> None:
    parts = tiny.parts()
    assert {"text_encoder", "image_encoder", "effnet", "stage_c", "stage_b", "stage_a", "previewer"} == set(parts)
    assert all(path == tiny.path(kind) and path.name == f"{kind}.safetensors" for kind, path in parts.items())


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match="controlnet"):
        tiny.path("controlnet")
