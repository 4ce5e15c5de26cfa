"""`edit`, `wordmap` and `generate --region`: what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.cli import main

FAST = ["--steps", "2", "--steps-b", "1", "--width", "64", "--height", "48"]
EDIT = ["edit", "--prompt", "a red circle", "--to", "a green circle"]


@pytest.fixture
def call(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command on the small networks: its status, the image's size and recipe if there is one, what it said."""

    def run(*arguments: str) -> Any:
        out = tmp_path / "out.png"
        status = main([*arguments, "-o", str(out), "--models", str(folder), *FAST])
        said = capsys.readouterr().err
        if status:
            return status, None, None, said
        with Image.open(out) as image:
            return status, image.size, json.loads(image.info["cascade"]), said

    return run


def test_an_edit_says_how_it_was_made(call: Any) -> None:
    status, size, recipe, _ = call(*EDIT, "--seed", "3", "--weight", "green=2", "--text", "0.5")
    assert (status, size) == (0, (64, 48))
    wanted = {"prompt": "a red circle", "to": "a green circle", "seed": 3, "text": 0.5, "weight": {"green": 2.0}}
    assert wanted.items() <= recipe.items()
    assert {"image", "pooled", "blend"} <= recipe.keys()


def test_an_edit_beside_the_image_before(call: Any) -> None:
    assert call(*EDIT, "--comparison")[1] == (128, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "--prompt", "red", "--to", "blue"], "no word in common"),
        (["edit", "--prompt", "red", "--to", "red"], "the same"),
        ([*EDIT, "--weight", "owl=2"], "'owl' is not in the prompt"),
        (["wordmap", "a red circle", "--word", "owl"], "'owl' is not in the prompt"),
        (["generate", "a", "--region", "0,0,1,1.5=b"], "not in the image"),
        (["generate", "a", "--region", "0.5,0,0.5,1=b"], "not in the image"),
        (["generate", "a", "--region", "0,0,0.5.1,1=b"], "left,top,right,bottom"),
        (["generate", "a", "--region", "no prompt"], "BOX=PROMPT"),
        (["generate", "a", "--region", "0,0,1,1="], "BOX=PROMPT"),
        (["generate", "a", "--region", "nothing.png=b"], "nothing.png"),
    ],
)
def test_what_cannot_be_done_is_said_before_sampling(call: Any, arguments: list[str], message: str) -> None:
    status, _, _, said = call(*arguments)
    assert status == 1
    assert message in said
    assert "Stage C:" not in said


@pytest.mark.parametrize("weight", ["owl", "=2", "owl=much", "owl=-1", "owl=inf"])
def test_a_weight_is_a_word_and_a_factor(weight: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*EDIT, "--weight", weight])
    assert "WORD=F" in capsys.readouterr().err


def test_a_map_for_each_word(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--word", "red", "--word", "red circle"]
    out = tmp_path / "map.png"
    command = ["wordmap", "a red circle", *words, "-o", str(out), "--models", str(folder), *FAST]
    assert main(command) == 0
    paths = [tmp_path / "map-1.png", tmp_path / "map-2.png"]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (64, 48)
            red, green, blue = image.convert("RGB").split()
            assert red.tobytes() == green.tobytes() == blue.tobytes()
    assert main([*command, "--comparison"]) == 0
    with Image.open(paths[0]) as image:
        assert image.size == (128, 48)


def test_regions_as_boxes_and_as_masks(call: Any, photo: Path) -> None:
    plain, both = (
        call("generate", "a", *regions)[2] for regions in ([], ["--region", "0,0,0.5,1=b=c", "--region", f"{photo}=d"])
    )
    assert "region" not in plain
    # A folder is private.
    assert both["region"] == ["0,0,0.5,1=b=c", f"{photo.name}=d"]
