"""What the user set on ComfyUI's settings page for this pack: web/js/settings.js."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import folder_paths

T = TypeVar("T", int, bool, str)


def preference(name: str, default: T) -> T:
    """A setting as saved, else the default. With several users ComfyUI saves elsewhere, and all get the default."""
    file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get(f"StableCascade.{name}", default)
    except (OSError, ValueError, AttributeError):
        return default
    return value if type(value) is type(default) else default
