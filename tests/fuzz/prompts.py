"""Hostile prompts for a real server: the templates' with other values, links and shapes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.nodes.workflows import ELSEWHERE, NAMES, to_prompt, workflow

Prompt = dict[str, Any]
LONG = ("Train", "Large Image", "Super Resolution", "Outpaint", "LoRA files")
"""Templates that take too long on a CPU, or write files of models."""
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "0", "nan"),
    *("\ud800", "a\0b", "../../../etc/passwd", "/etc/passwd", "x" * 20_000, "(" * 2000, "\n" * 100, "<|endoftext|>"),
    *([], {}, [[]], [None, 0], ["1"], ["1", -1], ["1", 99], ["1", "0"], ["1", 0, 0], [1, 0], ["nowhere", 0], {"a": 1}),
    *({"__value__": ["1", 0]}, {"__type__": "x"}),
)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def templates(info: dict[str, Any]) -> list[Prompt]:
    """The API form of the templates that run quickly; `info` is the host's /object_info."""

    class Classes(dict[str, Any]):
        def __missing__(self, kind: str) -> Any:
            inputs = {
                group: {name: tuple(spec) for name, spec in specs.items()}
                for group, specs in info[kind]["input"].items()
                if group in ("required", "optional")
            }
            return SimpleNamespace(INPUT_TYPES=lambda: inputs)

    names = [name for name in NAMES if name not in ELSEWHERE and not name.startswith(LONG)]
    return [short(to_prompt(workflow(name), Classes())) for name in names]


def short(prompt: Prompt) -> Prompt:
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    return prompt


def any_input(prompt: Prompt, dice: random.Random) -> tuple[dict[str, Any], str]:
    node = dice.choice([node for node in prompt.values() if node.get("inputs")])
    return node["inputs"], dice.choice(list(node["inputs"]))


def other_value(prompt: Prompt, dice: random.Random) -> None:
    inputs, name = any_input(prompt, dice)
    inputs[name] = copy.deepcopy(dice.choice(VALUES))


def deep_value(prompt: Prompt, dice: random.Random) -> None:
    inputs, name = any_input(prompt, dice)
    inputs[name] = nested(dice.choice((3, 60, 300)))


def missing_input(prompt: Prompt, dice: random.Random) -> None:
    inputs, name = any_input(prompt, dice)
    del inputs[name]


def more_inputs(prompt: Prompt, dice: random.Random) -> None:
    inputs, _ = any_input(prompt, dice)
    inputs[dice.choice(("x", "", "self", "cls", "\ud800", "a b", "unique_id", "__class__"))] = dice.choice(VALUES)


def other_link(prompt: Prompt, dice: random.Random) -> None:
    """Links to nodes of another type, to the node itself, or in a circle."""
    inputs, name = any_input(prompt, dice)
    inputs[name] = [dice.choice(list(prompt)), dice.choice((0, 0, 1, 2, 7))]


def missing_node(prompt: Prompt, dice: random.Random) -> None:
    del prompt[dice.choice(list(prompt))]


def other_class(prompt: Prompt, dice: random.Random) -> None:
    node = dice.choice(list(prompt.values()))
    kinds = [each["class_type"] for each in prompt.values()]
    node["class_type"] = dice.choice((*kinds, "CascadeNothing", "", None, 3, "\ud800", "CascadeMergeLora"))


def no_node(prompt: Prompt, dice: random.Random) -> None:
    prompt[dice.choice((*prompt, "x", "\ud800"))] = dice.choice((None, [], 3, "x", {}, {"class_type": "SaveImage"}))


MUTATORS: tuple[Callable[[Prompt, random.Random], None], ...] = (
    *(other_value, other_value, other_value, deep_value, missing_input, more_inputs, other_link, other_link),
    *(missing_node, other_class, no_node),
)


def hostile(prompts: list[Prompt], dice: random.Random) -> tuple[str, Prompt]:
    """What was done, and the prompt."""
    prompt, notes = copy.deepcopy(dice.choice(prompts)), []
    for _ in range(dice.choice((1, 1, 2))):
        mutator = dice.choice(MUTATORS)
        try:
            mutator(prompt, dice)
        except (IndexError, AttributeError, TypeError, KeyError):
            break  # no input is left to change
        notes.append(mutator.__name__)
    return ", ".join(notes), prompt
