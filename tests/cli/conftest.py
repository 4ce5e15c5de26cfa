"""Files for the commands: small random networks, and a photo."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cascade.checkpoints import save_model
from tests.small import part

KINDS = ("text_encoder", "stage_c", "stage_b", "stage_a", "effnet", "image_encoder")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --models."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save_model(part(kind), root / f"{kind}.safetensors")
    return root


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gray gradient of 96 x 64 pixels."""
    path = tmp_path_factory.mktemp("images") / "photo.png"
    Image.linear_gradient("L").resize((96, 64)).save(path)
    return path
