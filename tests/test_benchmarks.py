"""The suite for a graphics card runs here in a small form, without the sides that are not installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_suite_for_a_graphics_card_in_small(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    command = [sys.executable, "benchmarks/gpu.py", "--small", "--repeats", "1", "--seconds", "900", "-o", str(page)]
    without_host = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    # Compiling would need a C++ compiler, and most of the time.
    env = {**without_host, "TORCHDYNAMO_DISABLE": "1"}
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    text = page.read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    ours = [line for line in lines[1:] if line[1].startswith("ours") and "ComfyUI" not in line[1]]
    assert len(ours) > 15
    assert [line for line in ours if not re.fullmatch(r"\d+\.\d ms", line[2])] == []
    theirs = [line for line in lines[1:] if "ComfyUI" in line[1]]
    assert theirs
    assert all(line[2] == "not here: COMFYUI_PATH does not say where ComfyUI lies" for line in theirs)
