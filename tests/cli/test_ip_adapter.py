"""`generate --ip-image`: what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade.checkpoints import save_model
from cascade.cli import main
from tests.small import ip_adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    save_model(ip_adapter(), tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def test_the_recipe_says_what_the_images_follow(call: Any, photo: Path, adapter: Path) -> None:
    _, plain, recipe, _ = call("a circle")
    assert "ip_image" not in recipe
    given = ("--ip-adapter", str(adapter), "--ip-end", "0.6", "--ip-blocks", "style", "--ip-mask", str(photo))
    status, pixels, recipe, said = call("a circle", "--ip-image", f"{photo}=0.5", "--ip-image", str(photo), *given)
    assert status == 0, said
    assert pixels != plain
    expected = {"ip_image": [f"{photo.name}=0.5", f"{photo.name}=1"], "ip_end": 0.6, "ip_blocks": "style"}
    assert (expected | {"ip_adapter": adapter.name, "ip_mask": photo.name}).items() <= recipe.items()
    assert "ip_start" not in recipe
    assert call("a circle", "--ip-image", f"{photo}=0", "--ip-adapter", str(adapter))[1] == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ip-adapter", "{adapter}"], "--ip-adapter needs --ip-image"),
        (["--ip-start", "0"], "--ip-start needs --ip-image"),
        (["--ip-image", "{photo}"], "--ip-image needs --ip-adapter"),
        (["--ip-image", "nothing.png", "--ip-adapter", "{adapter}"], "nothing.png"),
        (["--ip-image", "{photo}", "--ip-adapter", "{photo}"], "photo"),
        (
            ["--ip-image", "{photo}", "--ip-adapter", "{adapter}", "--ip-start", "0.7", "--ip-end", "0.2"],
            "not be above",
        ),
        (["--ip-image", "{photo}", "--ip-adapter", "{adapter}", "--style", "{photo}"], "use one of them"),
    ],
)
def test_what_cannot_be_followed_is_said(
    call: Any, photo: Path, adapter: Path, arguments: list[str], message: str
) -> None:
    status, _, _, said = call("a circle", *(argument.format(photo=photo, adapter=adapter) for argument in arguments))
    assert status != 0
    assert message in said


@pytest.mark.parametrize(("value", "message"), [("a.png=x", "FILE=WEIGHT"), ("a.png=nan", "FILE=WEIGHT")])
def test_weights_that_make_no_sense_are_refused(value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "a circle", "--ip-image", value])
    assert message in capsys.readouterr().err


def test_not_with_a_file_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("a circle\n", encoding="utf-8")
    given = ["--prompts", str(tmp_path / "p.txt"), "-o", str(tmp_path / "out"), "--ip-image", "a.png"]
    assert main(["generate", *given]) != 0
    assert "--ip-image cannot be used with --prompts" in capsys.readouterr().err
