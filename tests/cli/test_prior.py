"""`generate --prior`, and `--control sketch`: what they write, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.checkpoints import save_model
from cascade.cli import main
from tests import small

FAST = ["--steps", "2", "--steps-b", "1", "--width", "64", "--height", "48"]


@pytest.fixture
def call(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command on the small networks: its status, the image's pixels and recipe, what it said."""

    def run(*arguments: str) -> Any:
        out = tmp_path / "out.png"
        status = main(["generate", *arguments, "-o", str(out), "--models", str(folder), *FAST])
        said = capsys.readouterr().err
        if status:
            return status, None, {}, said
        with Image.open(out) as image:
            return status, image.tobytes(), json.loads(image.info["cascade"]), said

    return run


def test_an_image_of_an_embedding(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_model(small.prior(), path)
    _, plain, recipe, _ = call("a circle")
    assert "prior" not in recipe
    status, pixels, recipe, said = call("a circle", "--prior", str(path))
    assert status == 0, said
    assert pixels != plain
    assert recipe["prior"] == "own.safetensors"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior"], "give --prior FILE"),
        (["--prior", "nothing.safetensors"], "nothing.safetensors"),
        (["--prior", "{photo}"], "photo"),
    ],
)
def test_what_is_no_prior_is_refused(call: Any, photo: Path, arguments: list[str], message: str) -> None:
    status, _, _, said = call("a circle", *(argument.format(photo=photo) for argument in arguments))
    assert status != 0
    assert message in said


def test_lines_of_prompts_take_no_prior(call: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a circle\n", encoding="utf-8")
    status, _, _, said = call("--prompts", str(prompts), "--prior")
    assert status != 0
    assert "--prior cannot be used with --prompts" in said
