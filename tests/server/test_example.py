"""docs/examples/text_to_image.py against a real server, as somebody would call it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.nodes.image_checks import needs_tiny, wrong
from tests.nodes.workflows import ROOT
from tests.server.serving import Server

SCRIPT = ROOT / "docs" / "examples" / "text_to_image.py"
TEXT = "a large red circle on a blue background, left"


def command(server: str, output: Path, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPT), TEXT, "--server", server, "--output", str(output), *words]


def run(server: str, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(server, output, *words), capture_output=True, text=True, timeout=300)


@needs_tiny
def test_it_saves_the_image(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "image.png"
    result = run(server.url, output)
    assert result.returncode == 0, result.stderr
    assert "CascadeSampleStageC: step 20 of 20" in result.stderr
    assert result.stderr.endswith(f"{output}\n")
    image = np.asarray(Image.open(output).convert("RGB"))
    assert image.shape == (256, 256, 3)
    assert wrong(TEXT, image) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "nothing.safetensors"], "CascadeLoadCheckpoint: Value not in list: ckpt_name"),
        (["--size", "1000000"], "CascadeEmptyLatent: Value 1000000 bigger than max"),
        (["--checkpoint", "page.safetensors"], "CascadeLoadCheckpoint: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(server: Server, tmp_path: Path, words: list[str], said: str) -> None:
    page = server.base / "models" / "checkpoints" / "page.safetensors"
    page.write_text("<!DOCTYPE html><html>Sign in</html>", encoding="utf-8")
    result = run(server.url, tmp_path / "image.png", *words)
    page.unlink()
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_away(tmp_path: Path) -> None:
    result = run("http://127.0.0.1:9", tmp_path / "image.png")
    assert result.returncode == 1
    assert "ComfyUI at http://127.0.0.1:9 does not answer" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_stopped_script_stops_its_prompt(server: Server, tmp_path: Path) -> None:
    """Ctrl-C while the first step is on its way."""
    # A runner that ignores the signal hands that down to what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["--checkpoint", "small_c.safetensors", "--size", "1024"]
    with subprocess.Popen(command(server.url, tmp_path / "image.png", *words), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = b""
        while b"step" not in said:
            letter = process.stderr.read(1)
            assert letter, said
            said += letter
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in said
    while server.json("/queue")["queue_running"]:
        time.sleep(0.05)
    [last] = server.json("/history?max_items=1").values()
    assert "execution_interrupted" in dict(last["status"]["messages"])
