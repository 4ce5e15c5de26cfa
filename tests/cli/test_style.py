"""`generate --style`: what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_the_recipe_says_what_the_images_follow(call: Any, photo: Path) -> None:
    _, plain, recipe, _ = call("a circle")
    assert "style" not in recipe
    status, pixels, recipe, said = call(
        "a circle", "--style", str(photo), "--content", str(photo), "--style-weight", "0.5"
    )
    assert status == 0, said
    assert pixels != plain
    assert {"style": photo.name, "content": photo.name, "style_weight": 0.5}.items() <= recipe.items()
    assert call("a circle", "--style", str(photo), "--style-weight", "0")[1] == plain
    masked = call("a circle", "--style", str(photo), "--content", str(photo), "--content-mask", str(photo))
    assert masked[2]["content_mask"] == photo.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style-steps", "3"], "needs --style"),
        (["--content", "{photo}", "--style-steps", "3"], "needs --style"),
        (["--style", "{photo}", "--content-mask", "{photo}"], "needs --content"),
        (["--style", "{photo}", "--style-descriptor", "{photo}"], "needs --style-steps"),
        (["--style-aligned"], "--number 2 or more"),
        (["--style", "nothing.png"], "nothing.png"),
        (["--style", "{photo}", "--region", "0,0,0.5,1=a star"], "one of them"),
    ],
)
def test_what_cannot_be_followed_is_said(call: Any, photo: Path, arguments: list[str], message: str) -> None:
    status, _, _, said = call("a circle", *(argument.format(photo=photo) for argument in arguments))
    assert status != 0
    assert message in said


@pytest.mark.parametrize(("option", "message"), [("--style-weight=2", "0 to 1"), ("--style-steps=0", "1 or more")])
def test_numbers_that_make_no_sense_are_refused(
    call: Any, photo: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        call("a circle", "--style", str(photo), option)
    assert message in capsys.readouterr().err
