"""`generate --prior`, and `--control sketch`: what they write, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade.checkpoints import save_model
from tests import small


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
