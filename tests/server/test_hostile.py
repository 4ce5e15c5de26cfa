"""Prompts and moments that nobody means well with: the server answers, and then makes an image."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.fuzz.prompts import hostile, templates
from tests.nodes.networks import file_name
from tests.server.prompts import cascade, draws, node
from tests.server.serving import Server, start

PROMPTS = int(os.environ.get("CASCADE_TEST_PROMPTS", "40"))
"""More of them for a longer run."""
SECONDS = 60
"""For one prompt of one step, on a busy machine."""


def ended(server: Server, name: str) -> dict[str, Any]:
    """Its history; stopped where a value made it a long one."""
    try:
        return server.wait(name, SECONDS)
    except TimeoutError:
        server.post("/interrupt", {"prompt_id": name})
        return server.wait(name, SECONDS)


@pytest.mark.fuzz
def test_hostile_prompts_are_answered(server: Server, dice: random.Random) -> None:
    """400 with the reason, or an end with one of our messages, and never an end of the queue."""
    prompts = templates(server.json("/object_info"))
    run, untyped = 0, []
    for _ in range(PROMPTS):
        note, prompt = hostile(prompts, dice)
        status, body = server.post("/prompt", {"prompt": prompt})
        assert server.process.poll() is None, (note, server.log()[-4000:])
        # The host's own validation answers 500 to some of what is no prompt at all.
        assert status in (200, 400, 500), (note, status, body[:500])
        if status != 200:
            continue
        run += 1
        history = ended(server, json.loads(body)["prompt_id"])
        messages = dict(history["status"]["messages"])
        error = messages.get("execution_error")
        if error and error["node_type"].startswith("Cascade") and "cascade.errors." not in error["exception_type"]:
            untyped.append((note, error["node_type"], error["exception_type"], error["exception_message"][:200]))
    assert draws(server, cascade(seed=900)) == (256, 192)
    assert run > PROMPTS // 20
    assert not untyped


def test_interrupts_at_any_moment(server: Server, dice: random.Random) -> None:
    for number in range(8):
        name = server.queue(cascade(seed=700 + number, steps=60))
        time.sleep(dice.random() * 1.5)
        while not server.json(f"/history/{name}"):
            server.post("/interrupt", {"prompt_id": name})
            time.sleep(0.1)
        assert "execution_error" not in dict(server.json(f"/history/{name}")[name]["status"]["messages"])
    assert draws(server, cascade(seed=710)) == (256, 192)


def test_two_clients_at_once(server: Server) -> None:
    found: list[tuple[int, int]] = []

    def client(first: int) -> None:
        for number in range(4):
            found.append(draws(server, cascade(seed=first + number, steps=1)))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in (800, 810)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(256, 192)] * 8


PARTS = {"unet_name": "stage_c", "clip_name": "text_encoder", "encoder_name": "effnet"}


def training(steps: int) -> dict[str, Any]:
    """Train LoRA on included images, with the small networks."""
    texts = {
        "name": "killed",
        "token": "",
        "initializer_token": "",
        "class_folder": "",
        "caption": "",
        "previewer": "none",
    }
    numbers = {"steps": steps, "batch_size": 1, "learning_rate": 0.01, "rank": 4, "resolution": 64, "seed": 0}
    more = {"token_learning_rate": 0.0, "alpha": 0.0, "dropout": 0.0, "use_dora": False, "sample_every": 0}
    choices = {"target_modules": "attention", "text_encoder_modules": "none", "existing_run": "continue"}
    files = {name: file_name(kind) for name, kind in PARTS.items()}
    values = texts | numbers | more | choices | files | {"folder": "tiny hearts (included)", "sample_prompts": ""}
    return {"train": node("CascadeTrainLora", **values)}


def saving(number: int) -> dict[str, Any]:
    values = {"lora_name": "tiny cascade (included)", "filename_prefix": f"saved_{number}", "token_names": ""}
    return {"save": node("CascadeSaveLora", **values, format="cascade")}


def killed(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


def whole(path: Path) -> bool:
    with safe_open(path, "np") as file:
        return len(list(file.keys())) > 0


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_kill_while_it_writes_leaves_whole_files(dice: random.Random) -> None:
    """Killed while LoRAs are saved, and in a training; the next server starts, finds whole files, and trains on."""
    host = os.environ["COMFYUI_PATH"]
    server = start(host)
    try:
        models, output = server.base / "models", server.base / "output"
        assert server.run(training(3))["status"]["status_str"] == "success"
        for wanted in (saving, lambda number: training(100 + 100 * number)):
            for number in range(6):
                server.queue(wanted(number))
            time.sleep(0.5 + 3 * dice.random())
            killed(server)
            written = [*models.glob("loras/**/*.safetensors"), *output.glob("**/*.safetensors")]
            assert len(written) > 1
            assert all(map(whole, written))
            server = start(host, base=server.base)
        history = server.run(training(800))
        assert history["status"]["status_str"] == "success", history["status"]["messages"][-1]
        assert whole(models / "loras" / "killed.safetensors")
        assert not list(output.glob("**/.*.tmp"))
    finally:
        server.stop()
