"""A real ComfyUI as a server in a process of its own, with this pack in its custom_nodes."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from tests.nodes import networks

ROOT = Path(__file__).resolve().parent.parent.parent
PACK = "stable-cascade"
PAGE = {"Comfy.InstalledVersion": "1.47.12", "Comfy.TutorialCompleted": True}
"""Settings of somebody who has been here before: no tour."""


@dataclass
class Server:
    """A ComfyUI that runs once `launch` has returned."""

    command: list[str]
    base: Path
    url: str
    process: subprocess.Popen[bytes] = field(init=False)

    def launch(self) -> None:
        """Start it, again after `kill`: on what it left."""
        with (self.base / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, cwd=self.base)
        _wait_until_it_answers(self)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. A path is sent as it is written: no client tidies up its dots."""
        return self._answer(urllib.request.Request(self.url + path))

    def post(self, path: str, data: Any) -> tuple[int, bytes]:
        body = json.dumps(data).encode()
        return self._answer(urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}))

    def _answer(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as problem:
            return problem.code, problem.read()

    def json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def send(self, prompt: dict[str, Any], **more: Any) -> tuple[int, dict[str, Any]]:
        """Queue a prompt: status and answer."""
        status, body = self.post("/prompt", {"prompt": prompt, **more})
        return status, json.loads(body)

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt that is right: its id."""
        status, answer = self.send(prompt)
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, name: str, seconds: float = 120) -> dict[str, Any]:
        """What became of a prompt: its history."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log()[-4000:]
            history = self.json(f"/history/{name}")
            if history:
                return history[name]
            time.sleep(0.05)
        raise TimeoutError(self.log()[-4000:])

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        return self.wait(self.queue(prompt))

    def stopped(self, name: str, seconds: float = 60) -> dict[str, Any]:
        """Stop a prompt that runs, and no other: its history."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # Again and again: a prompt forgets what it was told before its first node.
            self.post("/interrupt", {"prompt_id": name})
            history = self.json(f"/history/{name}")
            if history:
                return history[name]
            time.sleep(0.2)
        raise TimeoutError(self.log()[-4000:])

    def previews(self, prompt: dict[str, Any], method: str) -> list[tuple[str, Image.Image]]:
        """Run a prompt with a setting of the page for live previews; what the page gets: node and image."""

        async def collect() -> list[tuple[str, Image.Image]]:
            return [(node, image) async for node, image in self._events(prompt, method) if image is not None]

        return asyncio.run(collect())

    def queue_until(self, prompt: dict[str, Any], node: str) -> str:
        """Queue a prompt and wait until it has come to a node: its id."""

        async def reach() -> None:
            async for running, _ in self._events(prompt, "none"):
                if running == node:
                    return

        asyncio.run(reach())
        [[_, name, *_]] = self.json("/queue")["queue_running"]
        return name

    async def _events(self, prompt: dict[str, Any], method: str) -> AsyncIterator[tuple[str, Image.Image | None]]:
        """Queue a prompt; (the node that runs, None), and (that node, an image) for each of its previews."""
        url, node = f"{self.url}/ws?clientId=tests", ""
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            status, answer = self.send(prompt, client_id="tests", extra_data={"preview_method": method})
            assert status == 200, answer
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    # The kind of event and that of the image come first, four bytes each.
                    yield node, Image.open(io.BytesIO(message.data[8:]))
                elif (event := json.loads(message.data))["type"] == "executing":
                    if event["data"]["node"] is None:
                        return
                    node = event["data"]["node"]
                    yield node, None

    def saved_images(self, history: dict[str, Any]) -> list[Path]:
        """The files that a prompt saved."""
        assert history["status"]["status_str"] == "success", history["status"]
        images = [image for output in history["outputs"].values() for image in output.get("images", ())]
        return [self.base / image["type"] / image["subfolder"] / image["filename"] for image in images]

    def error(self, history: dict[str, Any]) -> dict[str, Any]:
        """What a node that stopped said."""
        return next(data for event, data in history["status"]["messages"] if event == "execution_error")

    def memory(self, *, peak: bool = False) -> int:
        """Bytes that the process holds in memory, or the most that it ever held."""
        status, name = (
            Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8"),
            "VmHWM" if peak else "VmRSS",
        )
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))

    def log(self) -> str:
        return (self.base / "log.txt").read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End it without a word to it, as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self.base.parent, ignore_errors=True)


def start(host: str, *, small: bool = True, options: Sequence[str] = ()) -> Server:
    """Start the host that lies at a path.

    small: put files of small random networks into its folders.
    options: more words of the host's command line.
    """
    base, port = _new_base(small), _free_port()
    command = [sys.executable, str(Path(host).resolve() / "main.py"), "--cpu", "--disable-api-nodes"]
    command += ["--port", str(port), "--base-directory", str(base), "--database-url", "sqlite:///:memory:", *options]
    server = Server(command, base, f"http://127.0.0.1:{port}")
    try:
        server.launch()
    except BaseException:
        server.stop()
        raise
    return server


def _new_base(small: bool) -> Path:
    """A folder for a server, in a folder of its own: what is written beside it is seen."""
    base = Path(tempfile.mkdtemp(prefix="cascade-server-")) / "comfyui"
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / PACK).symlink_to(ROOT)
    (base / "user" / "default").mkdir(parents=True)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(PAGE), encoding="utf-8")
    if small:
        networks.write(base / "models")
    return base


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(server: Server, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"ComfyUI ended while it started:\n{server.log()[-4000:]}")
        try:
            server.json("/system_stats")
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(server.log()[-4000:])
