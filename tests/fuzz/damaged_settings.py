"""Damaged settings files of trainings, and changes of them as `--set` has them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cascade.errors import InvalidConfig
from cascade.models import ControlNetConfig, EffnetConfig, PreviewerConfig, StageAConfig, StageBConfig, StageCConfig
from cascade.tiny import train as recipe
from cascade.training import SETTINGS, read_config
from cascade.training.config import incompatible_changes, read_value
from cascade.training.networks import model_config
from cascade.training.objective import build_diffusion
from tests.fuzz.classes import Case, FuzzClass

ROOT = recipe.RECIPE.parent.parent.parent
NETWORKS: dict[str, Any] = {
    "stage_a": StageAConfig,
    "encoder": EffnetConfig,
    "stage_b": StageBConfig,
    "stage_c": StageCConfig,
    "controlnet": ControlNetConfig,
}
VALUES: tuple[Any, ...] = (
    *(None, True, "", "x", -1, 0, 0.5, 1e308, float("nan"), float("inf"), 2**63, 2**64, 10**40, [], {}, [[]], [None]),
    *({"a": 1}, "\ud800", "a\0b", "../../../x", "/", "~", ".", "tiny:", "tiny:x", "tiny:../..", "CON", "x" * 5000),
    *(["x"] * 300, {"reference": {}}, {"reference": 5}, {"reference": {"c_hidden": []}}, "2026-01-01", "1e999", "0x1f"),
)
TEXTS = (
    *("!!bool maybe", '!!int ""', "!!timestamp x", "!!set {a, b}", "!!binary x", "!!python/name:os.system", "&a [*a]"),
    *(
        "*missing",
        "2026-99-99",
        "2026-01-01 10:00:00",
        "1:" * 200 + "1",
        "0x" + "f" * 4000,
        "9" * 4999,
        "=",
        "<<",
        "? a",
    ),
    *(
        "[" * 900,
        "{" * 900,
        "{a: " * 40 + "1" + "}" * 40,
        "|\n  text",
        ">-\n  a\n\n  b",
        '"\\ud800"',
        '"\\0"',
        "\t",
        "%YAML 9.9",
    ),
    *("!!omap [a: 1]", "!<tag:x> y", "'", '"', "@", "`", "- -", "---\nb: 1", "...", "\x07", "é", "﻿", "\u2028"),
)


@cache
def originals() -> tuple[str, ...]:
    found = [path.read_text(encoding="utf-8") for path in sorted(recipe.RECIPE.glob("*.yaml")) if path != recipe.SMOKE]
    example = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
    return (*found, *(text.split("```")[0] for text in example.split("```yaml\n")[1:]))


def bomb(dice: random.Random) -> tuple[str, str]:
    """Lines that name a value, and its name, which stands for up to 20 ** 12 of them."""
    width, depth = dice.randint(2, 20), dice.randint(2, 12)
    if dice.random() < 0.5:
        lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    else:
        lines = ["a0: &a0 {x: 1}"]
        lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}]}}" for i in range(1, depth)]
    return "\n".join(lines) + "\n", f"*a{depth - 1}"


def places(text: str) -> list[tuple[int, int]]:
    """Where the values of lines `key: value` lie."""
    found, at = [], 0
    for line in text.splitlines(keepends=True):
        key, colon, value = line.rstrip("\n").partition(": ")
        if colon and not key.lstrip().startswith("#"):
            found.append((at + len(key) + 2, at + len(key) + 2 + len(value)))
        at += len(line)
    return found


def change_text(text: str, dice: random.Random) -> str:
    start, end = dice.choice(places(text))
    return text[:start] + dice.choice(TEXTS) + text[end:]


def put_bomb(text: str, dice: random.Random) -> str:
    lines, name = bomb(dice)
    start, end = dice.choice(places(text))
    return lines + text[:start] + name + text[end:]


def change_lines(text: str, dice: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(lines))
        lines[at : at + 1] = dice.choice(([], [lines[at]] * 2, ["  " + lines[at]], [lines[at].lstrip()]))
        lines = lines or [""]
    return "".join(lines)


def change_characters(text: str, dice: random.Random) -> str:
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(text))
        text = text[:at] + dice.choice("[]{}:,&*!|>'\"%@`#?- \n\t0\x07\ud800") + text[at + dice.randrange(2) :]
    return text


def change_values(text: str, dice: random.Random) -> str:
    data = yaml.safe_load(text)
    for _ in range(dice.randint(1, 3)):
        holder, key = dice.choice(list(slots(data)))
        match dice.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[dice.choice(("x", "", "steps", "name", 5, None, "k" * 3000))] = holder[key]
            case _:
                holder[key] = copy.deepcopy(dice.choice(VALUES))
    return json.dumps(data)


def slots(data: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield data, key
        if isinstance(value, dict | list) and value:
            yield from slots(value)
    if not data:
        yield {"x": 1}, "x"


MUTATORS: tuple[Callable[[str, random.Random], str], ...] = (
    *(change_text, put_bomb, change_lines, change_characters, change_values, change_values, change_values),
)
CHANGES = (
    "steps.x",
    "lora.images.size",
    "lora",
    "",
    ".",
    "a..b",
    "lora.tokens.0.text",
    "steps",
    "output.x",
    "task",
    "x" * 3000,
)


def make(dice: random.Random, folder: Path) -> Case:
    mutator = dice.choice(MUTATORS)
    text, notes = mutator(dice.choice(originals()), dice), [mutator.__name__]
    if dice.random() < 0.3:
        second = dice.choice((change_lines, change_characters))
        text, notes = second(text, dice), [*notes, second.__name__]
    path = folder / dice.choice(("a.yaml", "a.yaml", "a.json"))
    path.write_bytes(text.encode("utf-8", dice.choice(("surrogatepass", "replace"))))
    changes = {dice.choice(CHANGES): dice.choice((*TEXTS, "5", "null", "[]"))} if dice.random() < 0.3 else {}
    return Case(path, ", ".join(notes), changes)


def use(case: Case) -> None:
    changes = {key: read_value(text, f"--set {key}") for key, text in case.detail.items()}
    config = read_config(case.path, SETTINGS, root=case.path.parent, changes=changes)
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert not incompatible_changes(config.to_dict(), config.to_dict())
    section: Any = config.settings
    if config.task in NETWORKS:
        model_config(NETWORKS[config.task], section.model, config.task)
    if config.task == "encoder":
        model_config(PreviewerConfig, section.previewer, config.task)
    if hasattr(section, "diffusion"):
        build_diffusion(section.diffusion)


CLASSES = (FuzzClass("settings", make, use, (InvalidConfig,), originals),)
