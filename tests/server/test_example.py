"""docs/examples/text_to_image.py against a real server, as somebody would call it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.nodes.image_checks import needs_tiny, wrong
from tests.nodes.workflows import ROOT
from tests.server.prompts import cascade, node, with_input
from tests.server.serving import Server

SCRIPT = ROOT / "docs" / "examples" / "text_to_image.py"
TEXT = "a large red circle on a blue background, left"


def command(server: str, output: Path, *words: str) -> list[str]:
    text = [] if "--graph" in words else [TEXT]
    return [sys.executable, str(SCRIPT), *text, "--server", server, "--output", str(output), *words]


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


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("http://127.0.0.1:9", "ComfyUI at http://127.0.0.1:9 does not answer"),
        ("127.0.0.1:8188", "'127.0.0.1:8188' is not an address"),
        ("http://", "'http://' is not an address"),
        ("http://127.0.0.1:8188/page", "is not an address"),
        ("http://127.0.0.1:99999999", "invalid address value"),
        ("http://nowhere.invalid", "ComfyUI at http://nowhere.invalid does not answer"),
    ],
)
def test_a_server_that_is_away(tmp_path: Path, server: str, said: str) -> None:
    result = run(server, tmp_path / "image.png")
    assert result.returncode in (1, 2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_is_not_comfyui(tmp_path: Path) -> None:
    """One that serves files, as a wrong port may."""
    served = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(served, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as other:
        assert other.stdout is not None
        port = other.stdout.readline().split(" port ")[1].split()[0]
        result = run(f"http://127.0.0.1:{port}", tmp_path / "image.png")
        other.terminate()
    assert result.returncode == 1
    assert "does not answer" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_takes_no_file(server: Server, tmp_path: Path) -> None:
    """It is said before anything is generated."""
    before = server.json("/history")
    result = run(server.url, tmp_path / "missing" / "image.png")
    assert result.returncode == 1
    assert "missing" in result.stderr
    assert "Traceback" not in result.stderr
    assert server.json("/history") == before


def graph(folder: Path, prompt: Any) -> str:
    path = folder / "graph.json"
    path.write_text(json.dumps(prompt), encoding="utf-8")
    return str(path)


def test_a_graph_with_several_images_and_a_preview(server: Server, tmp_path: Path) -> None:
    prompt = with_input(cascade(), "size", "batch_size", 2)
    prompt["preview"] = node("PreviewImage", images=["decode", 0])
    small = node("ImageScale", image=["decode", 0], upscale_method="area", width=64, height=64, crop="disabled")
    prompt |= {"small": small, "another": node("SaveImage", images=["small", 0], filename_prefix="small")}
    result = run(server.url, tmp_path / "image.png", "--graph", graph(tmp_path, prompt))
    assert result.returncode == 0, result.stderr
    names = ["image.png", "image_2.png", "image_3.png", "image_4.png"]
    assert result.stderr.split()[-4:] == [str(tmp_path / name) for name in names]
    sizes = sorted(Image.open(tmp_path / name).size for name in names)
    assert sizes == [(64, 64), (64, 64), (256, 192), (256, 192)]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"nodes": [], "links": []}, "is not a prompt for the API. On the page, save it with Export (API)."),
        ([], "is not a prompt for the API"),
        ({"size": node("EmptyImage", width=64, height=64, batch_size=1, color=0)}, "Prompt has no outputs"),
        (
            {
                "image": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
                "preview": node("PreviewImage", images=["image", 0]),
            },
            "It needs a Save Image node",
        ),
    ],
)
def test_graphs_that_give_no_image(server: Server, tmp_path: Path, prompt: Any, said: str) -> None:
    result = run(server.url, tmp_path / "image.png", "--graph", graph(tmp_path, prompt))
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "image.png").exists()


def test_a_graph_that_is_not_there(tmp_path: Path) -> None:
    result = run("http://127.0.0.1:9", tmp_path / "image.png", "--graph", str(tmp_path / "graph.json"))
    assert result.returncode == 1
    assert "graph.json" in result.stderr
    assert "Traceback" not in result.stderr


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("text_to_image", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LateSession:
    """Answers for the history of a prompt: nothing at first, as right after its last event."""

    def __init__(self) -> None:
        self.asked = 0

    def get(self, path: str) -> LateSession:
        self.asked += 1
        return self

    async def __aenter__(self) -> LateSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def json(self) -> dict[str, Any]:
        return {"a": {"outputs": {"save": {}}}} if self.asked > 2 else {}


def test_results_that_come_after_the_last_event() -> None:
    session = LateSession()
    assert asyncio.run(script().outputs(session, "a")) == {"save": {}}
    assert session.asked == 3


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
