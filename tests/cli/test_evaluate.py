"""`python -m cascade evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cascade import tiny
from cascade.cli import main
from cascade.tiny import evaluation
from cascade.tiny.evaluation import Evaluation, Judged, Row, Sample


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `evaluate` was asked for; it answers with one row and one image."""
    seen: dict[str, Any] = {}

    def evaluate(parts: Any, **given: Any) -> Evaluation:
        seen.update(given, sources=dict(parts.sources))
        given["on_progress"]("prompts", 1, 1)
        return Evaluation((Row("shape", (Judged("shape", 1.0),), 0.9),), (Sample("a star", torch.zeros(3, 8, 8)),))

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    return seen


def test_prints_and_writes(asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, sheet = tmp_path / "table.md", tmp_path / "sheet.png"
    assert main(["evaluate", "tiny", "--prompts", "5", "--seed", "2", "-o", str(table), "--sheet", str(sheet)]) == 0
    out, err = capsys.readouterr()
    assert "| shape | >= 90.0 % | 100.0 % |" in out
    assert table.read_text(encoding="utf-8") == out
    assert sheet.stat().st_size > 0
    assert "prompts: 1 of 1" in err
    assert (asked["prompts"], asked["seed"]) == (5, 2)
    assert asked["sources"] == tiny.parts()


def test_another_training(asked: dict[str, Any], tmp_path: Path) -> None:
    assert main(["evaluate", str(tmp_path)]) == 0
    assert asked["sources"]["stage_c"] == tmp_path / "stage_c.safetensors"
    assert asked["prompts"] == 300


def test_places_are_checked_first(asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "tiny", "-o", str(tmp_path / "no" / "table.md")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert not asked


def test_prompts_are_counted_from_one() -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "tiny", "--prompts", "0"])


def test_the_controlnets(asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade.checkpoints import save_model
    from cascade.models import ControlNet, ControlNetConfig, initialize
    from cascade.tiny import control

    net = initialize(ControlNet(ControlNetConfig(in_channels=1, width=8, blocks=(0,), backbone="simple")))
    for part in tiny.CONTROLS.values():
        save_model(net, tmp_path / f"{part}.safetensors")
    seen: dict[str, Any] = {}

    def evaluate_control(parts: Any, nets: Any, **given: Any) -> Evaluation:
        seen.update(given, nets=nets)
        return Evaluation((Row("canny", (Judged("canny", 1.0),)),), ())

    monkeypatch.setattr(control, "evaluate_control", evaluate_control)
    assert main(["evaluate", str(tmp_path), "--control", "--prompts", "7"]) == 0
    assert (seen["cases"], set(seen["nets"])) == (7, set(tiny.CONTROLS))
    assert not asked
