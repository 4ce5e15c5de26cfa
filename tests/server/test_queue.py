"""Many prompts, and prompts that are stopped."""

from __future__ import annotations

import time

import pytest

from tests.server.prompts import cascade, draws
from tests.server.serving import Server

WARM_UP = 12
"""Prompts after which everything that is kept for later has been loaded and made."""
PROMPTS = 30
SIZES = [(256, 192), (320, 320), (192, 448), (512, 256), (384, 384)]
GROWTH = 32 * 2**20
"""Bytes: what thirty prompts may add, less than an image and its latents for each would."""


def test_memory_does_not_creep(server: Server) -> None:
    held = 0
    for number in range(WARM_UP + PROMPTS):
        if number == WARM_UP:
            held = server.memory()
        width, height = SIZES[number % len(SIZES)]
        assert draws(server, cascade(seed=100 + number, width=width, height=height, steps=1)) == (width, height)
    assert server.memory() - held < GROWTH


METHODS = ["none", "auto", "latent2rgb", "taesd"]


@pytest.mark.parametrize("method", METHODS)
def test_previews_come_once_a_step_and_as_they_are_set(server: Server, method: str) -> None:
    # A seed of its own: what ran before is not sampled again.
    prompt = cascade(seed=70 + METHODS.index(method), steps=3)
    nodes = [node for node, _ in server.previews(prompt, method)]
    assert nodes == ([] if method == "none" else ["stage_c"] * 3 + ["stage_b"] * 2)


def test_a_step_of_minutes_is_stopped_within_seconds(server: Server) -> None:
    """Stage C's latent of 384 x 384: its first attention alone takes more than a minute."""
    name = server.queue_until(cascade(seed=80, width=16384, height=16384), "stage_c")
    time.sleep(8)
    since = time.monotonic()
    assert "execution_interrupted" in dict(server.stopped(name)["status"]["messages"])
    assert time.monotonic() - since < 20


def test_one_of_two_is_stopped_and_the_other_runs(server: Server) -> None:
    long, short = server.queue(cascade(seed=50, steps=1000)), server.queue(cascade(seed=51))
    messages = dict(server.stopped(long)["status"]["messages"])
    assert "execution_interrupted" in messages
    assert "execution_error" not in messages
    assert server.wait(short)["status"]["status_str"] == "success"
    assert draws(server, cascade(seed=52)) == (256, 192)


def test_one_that_waits_is_taken_out(server: Server) -> None:
    long, waiting = server.queue(cascade(seed=60, steps=1000)), server.queue(cascade(seed=61))
    assert server.post("/queue", {"delete": [waiting]})[0] == 200
    server.stopped(long)
    assert server.json("/queue") == {"queue_running": [], "queue_pending": []}
    assert server.json(f"/history/{waiting}") == {}
