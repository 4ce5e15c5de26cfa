from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.cli import main
from tests.checkpoints.files import comfyui_state, hollow_file, save
from tests.support import manifest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = hollow_file(tmp_path / "x.safetensors", manifest("stage_b_700m"))
    merged = save(tmp_path / "merged.safetensors", comfyui_state("stage_b", "stage_a"))
    assert main(["inspect", str(b), str(merged)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["file", str(b), str(merged), "stage_b", "stage_a"]
    assert lines[1].split(maxsplit=1)[1].split() == (
        ["Stage", "B,", "700M", "single", "file", "bfloat16", "699,471,248", "diffusion_models"]
    )
    assert "2 networks" in lines[2]
    # Columns stand under their heads.
    at = lines[0].index("what")
    assert lines[1][at:].startswith("Stage B, 700M")
    assert lines[3][at:].startswith("Stage B, custom")


def test_a_broken_file_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = hollow_file(tmp_path / "good.safetensors", manifest("previewer"))
    page = tmp_path / "page.safetensors"
    page.write_text("<!doctype html>", encoding="utf-8")
    assert main(["inspect", str(page), str(tmp_path / "nothing"), str(good)]) == 1
    out, err = capsys.readouterr()
    assert "Previewer" in out
    assert err.splitlines() == [
        f"error: {page}: this is a web page, not a checkpoint: the download got a page instead of the file",
        f"error: {tmp_path / 'nothing'}: there is no such file or folder",
    ]


def test_names_that_would_speak_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = hollow_file(tmp_path / "x.safetensors", {"\x1b[2J\n": [1]})
    assert main(["inspect", str(path)]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count("\n") == 1


def test_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(hollow_file(tmp_path / "x.safetensors", manifest("stage_c_1b")))]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["variant"], found["parameters"]) == ("stage_c", "Stage C, 1B", 1_030_785_040)
    assert found["config"]["levels"][1]["depth"] == 12


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(source: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cascade.checkpoints.inspect_file", interrupted)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr() == ("", "")


def test_help_needs_no_torch() -> None:
    program = "import sys; from cascade.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_reader_that_has_gone() -> None:
    """`inspect ... | head -0`: no traceback."""
    command = f"{sys.executable} -m cascade --help | true"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Traceback" not in result.stderr
