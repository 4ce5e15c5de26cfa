"""Damaged folders of trainings: states, metrics, caches, and what a killed process left."""

from __future__ import annotations

import copy
import io
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade.training.data import cached
from cascade.training.metrics import plot_loss
from tests.fuzz.classes import Case, FuzzClass
from tests.training.test_data import Numbers
from tests.training.test_loop import Regression, run

STATE, METRICS, INDEX, SHARD = "state.pt", "metrics.jsonl", "index.json", "0000000-00000.safetensors"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x", [], {}, (), [None], {"a": []}, b"x"),
    *(
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(3, 3),
        torch.full((2, 8), float("nan")),
        torch.zeros(1).expand(4, 4),
    ),
    *(torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.complex64), torch.zeros(1).expand(10**9)),
)
LINES = (
    *('{"step": 1}', '{"step": "x"}', '{"step": null, "loss": 1.0}', "{}", "[]", "3", "{", '{"step": 1, "loss": NaN}'),
    *(
        '{"step": 0, "loss": 1e-300}',
        '{"step": 1e999}',
        "[" * 5000,
        '{"step": 9, "loss": 1e308}',
        "\x00",
        '{"step": -5}',
    ),
)


@cache
def originals() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), steps=3, log_every=1)
        found = {name: (Path(folder) / name).read_bytes() for name in (STATE, METRICS)}
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder))
        [place] = Path(folder).iterdir()
        return found | {name: (place / name).read_bytes() for name in (INDEX, SHARD)} | {"place": place.name.encode()}


def made(folder: Path) -> Any:
    return cached(folder, "x", Numbers(4), lambda pixels: {"images": pixels.astype(np.float16)})


def flipped(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 5)):
        at = dice.randrange(len(changed)) if changed else 0
        match dice.randrange(4):
            case 0:
                del changed[at:]
            case 1:
                changed[at:at] = dice.randbytes(dice.randint(1, 40))
            case 2:
                del changed[at : at + dice.randint(1, 40)]
            case _ if changed:
                changed[at] ^= 1 << dice.randrange(8)
    return bytes(changed)


def other_state(dice: random.Random) -> bytes:
    """A state that is whole, with other values in it."""
    state = torch.load(io.BytesIO(originals()[STATE]), weights_only=True)
    for _ in range(dice.randint(1, 2)):
        # What a task keeps for itself is a matter of the task; that of this one is a stand-in.
        holder, key = state, dice.choice([key for key in state if key != "task"])
        while isinstance(holder[key], dict | list) and holder[key] and dice.random() < 0.8:
            holder = holder[key]
            key = dice.choice(list(holder)) if isinstance(holder, dict) else dice.randrange(len(holder))
        if dice.random() < 0.2:
            del holder[key]
        else:
            holder[key] = copy.copy(dice.choice(VALUES))
        if not state.keys() - {"task"}:
            break
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def make_run(dice: random.Random, folder: Path) -> Case:
    state, metrics, note = originals()[STATE], originals()[METRICS], dice.choice(("flip", "value", "value", "metrics"))
    if note == "flip":
        state = flipped(state, dice)
    elif note == "value":
        state = other_state(dice)
    else:
        lines = metrics.decode().splitlines()
        for _ in range(dice.randint(1, 3)):
            lines.insert(dice.randrange(len(lines) + 1), dice.choice(LINES))
        metrics = flipped("\n".join(lines).encode(), dice) if dice.random() < 0.3 else "\n".join(lines).encode()
    (folder / STATE).write_bytes(state)
    (folder / METRICS).write_bytes(metrics)
    (folder / f".{STATE}.999999999.tmp").write_bytes(b"left over")
    return Case(folder, note)


def use_run(case: Case) -> None:
    out = case.path / "out"
    shutil.copytree(case.path, out, ignore=shutil.ignore_patterns("out"))
    run(out, Regression(), steps=5, log_every=1)
    plot_loss(out)
    assert not list(out.glob(".*.tmp"))


def make_cache(dice: random.Random, folder: Path) -> Case:
    place = folder / originals()["place"].decode()
    place.mkdir()
    name = dice.choice((INDEX, SHARD))
    for each in (INDEX, SHARD):
        (place / each).write_bytes(originals()[each])
    match dice.randrange(4):
        case 0 if name == INDEX:
            texts = ("[]", '["0"]', "3", '{"0": 1}', '["\\ud800", "1", "2", "3"]', "[" * 9000, '["0", "1", "2", 3]')
            (place / name).write_text(dice.choice(texts), encoding="utf-8")
        case 0:
            shape = dice.choice(((3, 32, 32, 3), (4,), (), (0,), (5, 1)))
            np.save(place / name, np.zeros(shape, dice.choice((np.float64, np.uint8, np.complex64))))
        case 1:
            (place / name).unlink()
        case _:
            header = dice.random() < 0.7
            data = originals()[name]
            (place / name).write_bytes(flipped(data[:128], dice) + data[128:] if header else flipped(data, dice))
    return Case(folder, name)


def use_cache(case: Case) -> None:
    out = case.path / "out"
    shutil.copytree(case.path, out, ignore=shutil.ignore_patterns("out"))
    found = made(out)
    assert len(found.captions) == 4
    assert list(found.captions) == ["0", "1", "2", "3"]
    assert len(found.take("images", np.array([3, 0]))) == 2


CLASSES = (
    FuzzClass("training_states", make_run, use_run, prepare=originals),
    FuzzClass("training_caches", make_cache, use_cache, prepare=originals),
)
