"""How the stages are sampled, as `generate` is told it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.cli import main
from cascade.diffusion import SAMPLERS
from cascade.pipelines import STAGE_B_SETTINGS, STAGE_C_SETTINGS

Made = tuple[bytes, dict[str, Any]]
OPTION = {"sampler_name": "sampler"}
"""Name in a recipe -> option, where they differ."""


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> Callable[..., Made]:
    """(options) -> pixels and recipe."""

    def make(*options: str) -> Made:
        out = tmp_path / "image.png"
        sizes = ["--width", "64", "--height", "48", "--steps", "4", "--steps-b", "3"]
        assert main(["generate", "a cat", "-o", str(out), "--models", str(folder), *sizes, *options]) == 0
        with Image.open(out) as image:
            return image.tobytes(), json.loads(image.text["cascade"])

    return make


def again(recipe: dict[str, Any]) -> list[str]:
    """The options that a recipe's stages stand for."""
    return [
        word
        for stage, suffix in (("stage_c", ""), ("stage_b", "-b"))
        for name, value in recipe[stage].items()
        for word in (f"--{OPTION.get(name, name).replace('_', '-')}{suffix}", str(value))
    ]


@pytest.mark.parametrize(
    ("options", "stage", "expected"),
    [
        (["--cfg", "1.5"], "stage_c", {"cfg": 1.5}),
        (["--sampler", "ddim"], "stage_c", {"sampler_name": "ddim"}),
        (["--shift", "1"], "stage_c", {"shift": 1.0}),
        (["--cfg-rescale", "0"], "stage_c", {"cfg_rescale": 0.0}),
        (["--cfg-end", "0"], "stage_c", {"cfg_end": 0.0}),
        (["--start-percent", "0.5"], "stage_c", {"start_percent": 0.5}),
        (["--end-percent", "0.4"], "stage_c", {"end_percent": 0.4}),
        (["--steps-b", "2"], "stage_b", {"steps": 2}),
        (["--cfg-b", "3"], "stage_b", {"cfg": 3.0}),
        (["--sampler-b", "lcm"], "stage_b", {"sampler_name": "lcm"}),
        (["--shift-b", "3"], "stage_b", {"shift": 3.0}),
        (["--inner-every", "2"], "stage_c", {"inner_every": 2}),
        (["--inner-every", "4", "--cache-threshold", "100"], "stage_c", {"inner_every": 4, "cache_threshold": 100.0}),
        (["--cfg-every-b", "2"], "stage_b", {"cfg_every": 2}),
    ],
)
def test_an_option_reaches_its_stage_and_the_recipe(
    made: Callable[..., Made], options: list[str], stage: str, expected: dict[str, Any]
) -> None:
    plain, plain_recipe = made()
    assert plain_recipe["stage_c"] == {"steps": 4, "cfg": 4.0}
    assert plain_recipe["stage_b"] == {"steps": 3, "cfg": 1.1}
    pixels, recipe = made(*options)
    assert pixels != plain
    assert recipe == {**plain_recipe, stage: {**plain_recipe[stage], **expected}}
    assert made(*again(recipe)) == (pixels, recipe)


def test_a_cache_says_what_it_skipped(made: Callable[..., Made], capsys: pytest.CaptureFixture[str]) -> None:
    made("--inner-every", "2", "--cfg-every-b", "3")
    said = capsys.readouterr().err
    assert "Stage C: used again: the inner levels in 2 of 4 calls\n" in said
    assert "Stage B: used again: the prediction without the prompt in 2 of 3 steps\n" in said


@pytest.mark.parametrize("suffix", ["", "-b"])
def test_the_old_name_of_cfg(made: Callable[..., Made], suffix: str) -> None:
    assert made(f"--guidance{suffix}", "2") == made(f"--cfg{suffix}", "2")


def test_cfg_outside_its_part_of_the_run_is_1(made: Callable[..., Made]) -> None:
    # Four steps: 0, 0.25, 0.5 and 0.75.
    nowhere, _ = made("--start-percent", "0.8")
    assert nowhere == made("--cfg", "1")[0]
    first_half, second_half = made("--end-percent", "0.3")[0], made("--start-percent", "0.3")[0]
    assert len({nowhere, first_half, second_half}) == 3


def test_the_defaults_in_the_help_are_the_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = capsys.readouterr().out
    assert "--guidance" not in text

    def help_of(option: str) -> str:
        """Up to the next option, in one line."""
        found = re.search(rf"^  {option} .*\n(?: {{10,}}.*\n)*", text, re.MULTILINE)
        assert found is not None, option
        return " ".join(found[0].split())

    for suffix, stage in (("", STAGE_C_SETTINGS), ("-b", STAGE_B_SETTINGS)):
        for name, default in {"steps": stage.steps, "cfg": stage.guidance.cfg, "shift": stage.shift}.items():
            assert help_of(f"--{name}{suffix}").endswith(f"default {default:g}")
        assert help_of(f"--sampler{suffix}").endswith(f"default {stage.sampler_name}")
        assert all(name in help_of(f"--sampler{suffix}") for name in SAMPLERS)
    guidance = STAGE_C_SETTINGS.guidance
    assert help_of("--cfg-rescale").endswith(f"default {guidance.cfg_rescale:g}")
    assert help_of("--start-percent").endswith(f"default {guidance.start_percent:g}")
    assert help_of("--end-percent").endswith(f"default {guidance.end_percent:g}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "euler"], "--sampler: 'euler' is none of ddpm, ddim, lcm"),
        (["--shift", "0"], "--shift: 0 is not above 0"),
        (["--shift-b", "inf"], "--shift-b: inf is not above 0"),
        (["--cfg-rescale", "1.1"], "--cfg-rescale: 1.1 is not 0 to 1"),
        (["--start-percent", "nan"], "--start-percent: nan is not 0 to 1"),
        (["--steps", "0"], "--steps: 0 is not 1 or more"),
    ],
)
def test_a_number_outside_is_refused(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "a cat", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--start-percent", "0.6", "--end-percent", "0.4"], "start_percent 0.6 must not be above end_percent 0.4"),
        (["--cfg", "nan"], "cfg must be a finite number"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["generate", "a cat", "--models", str(folder), *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: Stage C: ")
    assert message in last
