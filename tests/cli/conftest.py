"""Files for the commands: small random networks, and a photo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.checkpoints import save_model
from cascade.cli import main
from tests.small import part

KINDS = ("text_encoder", "stage_c", "stage_b", "stage_a", "effnet", "image_encoder")
FAST = ["--steps", "2", "--steps-b", "1", "--width", "64", "--height", "48"]


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


@pytest.fixture
def call(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `generate` on the small networks: its status, the image's pixels and recipe, what it said."""

    def run(*arguments: str) -> Any:
        out = tmp_path / "out.png"
        status = main(["generate", *arguments, "-o", str(out), "--models", str(folder), *FAST])
        said = capsys.readouterr().err
        if status:
            return status, None, {}, said
        with Image.open(out) as image:
            return status, image.tobytes(), json.loads(image.info["cascade"]), said

    return run
