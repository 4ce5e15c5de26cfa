"""Some attacks of each class; `python -m tests.server` runs more of them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.server.attacks import KEEP, Attacks
from tests.server.serving import start

CASES = {"prompts": 20, "interrupts": 2, "kills": 1, "clients": 1}


@pytest.fixture(scope="module")
def attacks() -> Iterator[Attacks]:
    server = start(os.environ["COMFYUI_PATH"], options=KEEP)
    yield Attacks(server)
    server.stop()


@pytest.mark.fuzz
@pytest.mark.parametrize("name", CASES)
def test_the_server_bears_it(name: str, attacks: Attacks, dice: random.Random) -> None:
    problems = [problem for _ in range(CASES[name]) if (problem := attacks.all[name](dice))]
    assert not problems, f"{len(problems)} of {CASES[name]}; the first:\n{problems[0]}"
