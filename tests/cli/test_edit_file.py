"""`edit FILE`: an image of a file, its inversion, and what is refused before sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.cli import main

PROMPTS = ["--prompt", "a red circle", "--to", "a green circle"]
FAST = ["--steps", "2", "--steps-b", "1", "--width", "96", "--height", "64"]


@pytest.fixture
def call(folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `edit FILE` on the small networks: its status, the image and its recipe if there is one, what it said."""

    def run(*arguments: str, prompts: list[str] = PROMPTS) -> Any:
        out = tmp_path / "out.png"
        status = main(["edit", str(photo), *prompts, *FAST, *arguments, "-o", str(out), "--models", str(folder)])
        said = capsys.readouterr().err
        if status:
            return status, None, None, said
        with Image.open(out) as image:
            return status, image.copy(), json.loads(image.info["cascade"]), said

    return run


def test_the_image_has_its_size_and_its_recipe(call: Any) -> None:
    status, image, recipe, _ = call("--skip", "1")
    assert (status, image.size) == (0, (96, 64))
    assert {"file": "photo.png", "skip": 1, "prompt": "a red circle", "to": "a green circle"}.items() <= recipe.items()


def test_beside_the_image_before(call: Any) -> None:
    assert call("--comparison")[1].size == (192, 64)


def test_a_kept_inversion_is_used_again(call: Any, tmp_path: Path) -> None:
    kept = ["--inversion", str(tmp_path / "photo.safetensors")]
    first, second = call(*kept), call(*kept)
    assert "Using the inversion" not in first[3]
    assert "Using the inversion" in second[3]
    assert first[1].tobytes() == second[1].tobytes()


def test_another_prompt_steps_or_size_than_the_inversions(call: Any, tmp_path: Path) -> None:
    kept = ["--inversion", str(tmp_path / "photo.safetensors")]
    assert call(*kept)[0] == 0
    status, _, _, said = call(*kept, prompts=["--prompt", "a blue circle", "--to", "a red circle"])
    assert status == 1
    assert "made with the prompt 'a red circle'" in said
    for options, message in ((["--steps", "3"], "steps 2, and the edit has 3"), (["--width", "192"], "height x width")):
        status, _, _, said = call(*kept, *options)
        assert status == 1
        assert message in said


@pytest.mark.parametrize(
    ("options", "prompts", "message"),
    [
        (["--skip", "2"], PROMPTS, "can skip 0 to 1, not 2"),
        (["--sampler", "ddim"], PROMPTS, "sampler ddpm, not ddim"),
        (["--inversion", "no/such/folder/a.safetensors"], PROMPTS, "there is no folder"),
        (["--weight", "blue=2"], PROMPTS, "'blue' is not in the prompt"),
        ([], ["--prompt", "red", "--to", "blue"], "no word in common"),
    ],
    ids=["skip", "sampler", "folder", "word", "prompts"],
)
def test_refused_before_sampling(call: Any, options: list[str], prompts: list[str], message: str) -> None:
    status, _, _, said = call(*options, prompts=prompts)
    assert status == 1
    assert message in said


def test_an_empty_mask_is_refused_before_sampling(call: Any, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "empty.png")
    status, _, _, said = call("--mask", str(tmp_path / "empty.png"), "--inversion", str(tmp_path / "kept.safetensors"))
    assert status == 1
    assert "mask is empty" in said
    assert not (tmp_path / "kept.safetensors").exists()


@pytest.mark.parametrize("option", [["--skip", "1"], ["--mask", "a.png"], ["--inversion", "a.safetensors"]])
def test_options_of_a_file_need_one(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", *PROMPTS, *option]) == 1
    assert f"{option[0]} needs FILE" in capsys.readouterr().err
