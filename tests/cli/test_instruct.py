"""`edit FILE --instruction`: an image changed as an instruction says, and what is refused before sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.adapters import save_instruct
from cascade.cli import main
from cascade.models import Level, StageC, StageCConfig, initialize
from tests.small import instruct_network

FAST = ["--steps", "2", "--steps-b", "1", "--width", "96", "--height", "64"]
TOLD = ["--instruction", "make it green"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "instruct.safetensors"
    save_instruct(instruct_network(), path)
    return path


@pytest.fixture
def call(folder: Path, photo: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `edit FILE` on the small networks: its status, the image and its recipe if there is one, what it said."""

    def run(*arguments: str, file: bool = True, given: Path | None = network) -> Any:
        out = tmp_path / "out.png"
        files = [str(photo)] if file else []
        networks = ["--models", str(folder), *(["--instruct-network", str(given)] if given else [])]
        status = main(["edit", *files, *arguments, *FAST, "-o", str(out), *networks])
        said = capsys.readouterr().err
        if status:
            return status, None, None, said
        with Image.open(out) as image:
            return status, image.copy(), json.loads(image.info["cascade"]), said

    return run


def test_the_image_has_its_size_and_its_recipe(call: Any) -> None:
    status, image, recipe, _ = call(*TOLD, "--image-cfg", "1.2")
    assert (status, image.size) == (0, (96, 64))
    about = {"file": "photo.png", "instruction": "make it green", "image_cfg": 1.2, "instruct_strength": 1.0}
    assert about.items() <= recipe.items()


def test_its_options_make_a_difference(call: Any) -> None:
    base = call(*TOLD)[1]
    assert call(*TOLD)[1].tobytes() == base.tobytes()
    for options in (["--image-cfg", "3"], ["--instruct-strength", "0.2"], ["--cfg", "6"]):
        assert call(*TOLD, *options)[1].tobytes() != base.tobytes(), options
    assert call(*TOLD, "--comparison")[1].size == (192, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instruction", " "], "the instruction is empty"),
        ([*TOLD, "--to", "a green circle"], "--to does not go with --instruction"),
        ([*TOLD, "--skip", "2"], "--skip does not go with --instruction"),
        (["--prompt", "a circle", "--to", "a square"], "--instruct-network needs --instruction"),
    ],
)
def test_what_does_not_go_together(call: Any, arguments: list[str], message: str) -> None:
    status, _, _, said = call(*arguments)
    assert status == 1
    assert message in said


def test_what_is_missing(call: Any) -> None:
    for options, message in (
        ({"file": False}, "--instruction needs FILE"),
        ({"given": None}, "--instruction needs --instruct-network"),
    ):
        status, _, _, said = call(*TOLD, **options)
        assert status == 1
        assert message in said
    status, _, _, said = call("--prompt", "a red circle", given=None)
    assert status == 1
    assert "Give --prompt and --to, or FILE and --instruction." in said


def test_a_network_for_another_stage_c_or_of_another_kind(call: Any, folder: Path, tmp_path: Path) -> None:
    config = StageCConfig(condition_channels=16, levels=(Level(32, 2, 1), Level(32, 2, 1)))
    path = tmp_path / "other.safetensors"
    save_instruct(instruct_network(initialize(StageC(config))), path)
    status, _, _, said = call(*TOLD, given=path)
    assert status == 1
    assert "other.safetensors: made for a Stage C 32 wide" in said
    status, _, _, said = call(*TOLD, given=folder / "stage_a.safetensors")
    assert status == 1
    assert "not an instruct network" in said
