"""What a run leaves in its folder: the state, and the metrics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from cascade.errors import BrokenCheckpoint
from cascade.training.metrics import append_metrics, plot_loss, read_metrics, truncate_metrics
from cascade.training.state import STATE_FILE, load_state, save_state


def test_state_comes_back(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    save_state(tmp_path, {"step": 3, "weights": {"a": torch.arange(3.0)}})
    state = load_state(tmp_path)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["weights"]["a"], torch.arange(3.0))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 and then nothing"])
def test_a_broken_state_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=STATE_FILE):
        load_state(tmp_path)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_state_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "bad": Runs()}, tmp_path / STATE_FILE)
    with pytest.raises(BrokenCheckpoint):
        load_state(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_metrics_after_a_step_are_forgotten(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        append_metrics(tmp_path, {"step": step, "loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    truncate_metrics(tmp_path, 2)
    append_metrics(tmp_path, {"step": 3, "loss": float("nan")})
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] is None


def test_the_plot_wants_two_lines(tmp_path: Path) -> None:
    assert plot_loss(tmp_path) is None
    append_metrics(tmp_path, {"step": 1, "loss": 1.0})
    assert plot_loss(tmp_path) is None
    append_metrics(tmp_path, {"step": 2, "loss": 1.0})
    image = plot_loss(tmp_path)
    assert image is not None
    assert len(image.getcolors() or ()) > 2


@pytest.mark.parametrize("version", [None, "2", torch.zeros(0), torch.zeros(3), [2]])
def test_a_state_of_another_version_is_named(tmp_path: Path, version: object) -> None:
    torch.save({"format": version}, tmp_path / STATE_FILE)
    with pytest.raises(BrokenCheckpoint, match="another version"):
        load_state(tmp_path)
