"""Presets on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cascade import tiny
from cascade.adapters import Lora, LowRank, save_lora
from cascade.cli import main
from cascade.pipelines import PRESETS
from cascade.tiny import evaluation
from cascade.tiny.evaluation import Evaluation, Judged, Row
from tests.small import part

SMALL = ["--width", "64", "--height", "48"]
LAYER = "down_blocks.0.0.channelwise.4.weight"


@pytest.fixture
def lora(tmp_path: Path) -> str:
    weight: Any = part("stage_b").state_dict()[LAYER]
    change = LowRank(torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2), 1.0)
    save_lora(Lora({"stage_b": {LAYER: change}}), tmp_path / "few.safetensors", format="cascade")
    return str(tmp_path / "few.safetensors")


def made(folder: Path, out: Path, *options: str) -> tuple[bytes, dict[str, Any]]:
    command = ["generate", "a cat", "-o", str(out / "a.png"), "--models", str(folder), *SMALL, *options]
    assert main(command) == 0
    with Image.open(out / "a.png") as image:
        return image.tobytes(), json.loads(image.text["cascade"])


def test_fast_is_what_its_options_are(folder: Path, tmp_path: Path) -> None:
    preset = PRESETS["fast"]
    pixels, recipe = made(folder, tmp_path, "--preset", "fast")
    options = [
        word
        for stage, end in ((preset.stage_c, ""), (preset.stage_b, "-b"))
        for name, value in (("steps", stage.steps), ("cfg", stage.guidance.cfg), ("sampler", stage.sampler_name))
        for word in (f"--{name}{end}", str(value))
    ]
    interval = ["--end-percent", str(preset.stage_c.guidance.end_percent)]
    assert made(folder, tmp_path, *options, *interval)[0] == pixels
    assert (recipe["preset"], recipe["stage_c"]["steps"]) == ("fast", preset.stage_c.steps)


def test_options_replace_those_of_a_preset(folder: Path, tmp_path: Path) -> None:
    _, recipe = made(folder, tmp_path, "--preset", "fast", "--steps", "3", "--cfg-b", "1.5")
    assert recipe["stage_c"]["steps"] == 3
    assert recipe["stage_b"] == {"steps": PRESETS["fast"].stage_b.steps, "cfg": 1.5}


def test_turbo_with_other_networks_needs_a_lora(
    folder: Path, tmp_path: Path, lora: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a cat", "-o", str(tmp_path / "a.png"), "--models", str(folder), "--preset", "turbo"]
    assert main(command) == 1
    assert "--preset turbo needs LoRAs made for a few steps" in capsys.readouterr().err
    pixels, recipe = made(folder, tmp_path, "--preset", "turbo", "--lora", lora)
    assert (recipe["preset"], recipe["stage_c"]["steps"], recipe["stage_b"]["steps"]) == ("turbo", 4, 2)
    assert pixels != made(folder, tmp_path, "--preset", "turbo", "--lora", f"{lora}=0")[0]


def test_evaluate_measures_a_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def evaluate(parts: Any, **given: Any) -> Evaluation:
        seen.update(given, loras=parts.loras)
        return Evaluation((Row("shape", (Judged("shape", 1.0),), 0.9),), ())

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert main(["evaluate", "tiny"]) == 0
    assert seen["settings"] == evaluation.SETTINGS
    assert not seen["loras"]
    assert main(["evaluate", "tiny", "--preset", "turbo"]) == 0
    assert (seen["settings"].stage_c, seen["settings"].stage_b) == PRESETS["turbo"][:2]
    assert [Path(str(each.lora.path)) for each in seen["loras"]] == [tiny.path(name) for name in tiny.TURBO]


@pytest.mark.parametrize("option", ["--lora", "--high-res"])
def test_what_is_measured_with_its_own_settings_takes_no_preset(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "tiny", option, "--preset", "turbo"]) == 1
    assert f"{option} is measured with the released settings" in capsys.readouterr().err
