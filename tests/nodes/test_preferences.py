"""The settings on ComfyUI's settings page, as the nodes read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def saved(host: Any) -> Iterator[Path]:
    """Where ComfyUI saves them."""
    file = host.base / "user" / "default" / "comfy.settings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    yield file
    file.unlink(missing_ok=True)


def test_previews_have_the_size_of_the_settings(host: Any, saved: Path) -> None:
    previewer = host.pack("nodes.host.previews").Previewer(host.pack("cascade.tiny").path("previewer"))
    latents = torch.zeros(1, 16, 24, 12)
    assert previewer(latents).shape == (1, 3, 192, 96)
    saved.write_text(json.dumps({"StableCascade.PreviewSize": 64, "Comfy.Locale": "zh"}), encoding="utf-8")
    assert previewer(latents).shape == (1, 3, 64, 32)
    saved.write_text(json.dumps({"StableCascade.PreviewSize": 512}), encoding="utf-8")
    assert previewer(latents).shape == (1, 3, 192, 96)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"StableCascade.PreviewSize": "64"}', '{"Comfy.Locale": "zh"}'])
def test_unreadable_settings_are_the_defaults(host: Any, saved: Path, text: str) -> None:
    saved.write_text(text, encoding="utf-8")
    assert host.pack("nodes.host.preferences").preference("PreviewSize", 512) == 512
