"""Prompts that nobody means well with: those of the templates with other values, links and shapes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.nodes.workflows import choices_of, options_of
from tests.server.prompts import Prompt

Info = dict[str, Any]
"""The server's answer to /object_info: all nodes and their inputs."""

OUTSIDE = Path("/cascade-hostile/file")
"""A path that nobody has, and that must not appear."""
TEXTS = (
    *("", " ", "x", "nan", "\ud800", "a\0b", "a\rb\x1b[2J", "\n" * 100, "x" * 20_000, "(" * 2000, "(a:1e999)"),
    *("../../../etc/passwd", "../outside", "../../outside", str(OUTSIDE), "/", "/proc", "/dev/zero", "~", "aux", "a:b"),
    *(
        "%date:yyyy%",
        "%width%",
        "%00",
        "<|endoftext|>" * 50,
        "embedding:../x",
        "embedding:" * 50,
        "日本語 🎨",
        "a/b/c",
        ".",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *([], {}, [[]], [None, 0], ["1"], ["1", -1], ["1", 99], ["1", "0"], ["1", 0, 0], [1, 0], ["nowhere", 0], {"a": 1}),
    *({"__value__": ["1", 0]}, {"__value__": [1, 2]}, {"__type__": "x"}),
)
NAMES = ("x", "", "self", "cls", "\ud800", "a b", "unique_id", "__class__", "images", "model")


def _any_input(prompt: Prompt, dice: random.Random) -> tuple[str, dict[str, Any], str]:
    """A node's class, its inputs, and the name of one of these."""
    node = dice.choice([node for node in prompt.values() if node["inputs"]])
    return node["class_type"], node["inputs"], dice.choice(sorted(node["inputs"]))


def _spec(info: Info, kind: str, name: str) -> Any:
    groups = info.get(kind, {}).get("input", {})
    return next((group[name] for group in groups.values() if name in group), ("*",))


def other_text(prompt: Prompt, dice: random.Random, info: Info) -> None:
    texts = [(node["inputs"], key) for node in prompt.values() for key, value in node["inputs"].items()
             if isinstance(value, str) and choices_of(_spec(info, node["class_type"], key)) is None]  # fmt: skip
    inputs, name = dice.choice(texts)
    inputs[name] = dice.choice(TEXTS)


def other_choice(prompt: Prompt, dice: random.Random, info: Info) -> None:
    """Another one of the values that the node offers, such as a file of another kind, or the edge of its range."""
    kind, inputs, name = _any_input(prompt, dice)
    spec = _spec(info, kind, name)
    edges = [options_of(spec)[edge] for edge in ("min", "step") if edge in options_of(spec)]
    inputs[name] = dice.choice(choices_of(spec) or edges or [not inputs[name]])


def other_value(prompt: Prompt, dice: random.Random, info: Info) -> None:
    _, inputs, name = _any_input(prompt, dice)
    inputs[name] = copy.deepcopy(dice.choice((*VALUES, *TEXTS)))


def deep_value(prompt: Prompt, dice: random.Random, info: Info) -> None:
    _, inputs, name = _any_input(prompt, dice)
    value: Any = 1
    for _ in range(dice.choice((3, 60, 300))):
        value = [value]
    inputs[name] = value


def missing_input(prompt: Prompt, dice: random.Random, info: Info) -> None:
    _, inputs, name = _any_input(prompt, dice)
    del inputs[name]


def more_inputs(prompt: Prompt, dice: random.Random, info: Info) -> None:
    kind, inputs, _ = _any_input(prompt, dice)
    known = [name for group in info.get(kind, {}).get("input", {}).values() for name in group]
    value = copy.deepcopy(dice.choice((*VALUES, *TEXTS, [dice.choice(sorted(prompt)), 0])))
    inputs[dice.choice((*NAMES, *known))] = value


def other_link(prompt: Prompt, dice: random.Random, info: Info) -> None:
    """A link to a node of any type, to the node itself, or in a circle."""
    _, inputs, name = _any_input(prompt, dice)
    inputs[name] = [dice.choice(sorted(prompt)), dice.choice((0, 0, 1, 2, 7))]


def fitting_link(prompt: Prompt, dice: random.Random, info: Info) -> None:
    """A link of the right type to something else: Stage B's latent for Stage C, one image for another."""
    links = [(node["inputs"], key) for node in prompt.values() for key, value in node["inputs"].items()
             if isinstance(value, list) and len(value) == 2 and value[0] in prompt]  # fmt: skip
    inputs, name = dice.choice(links)
    source, slot = inputs[name]
    wanted = info[prompt[source]["class_type"]]["output"][slot]
    inputs[name] = dice.choice(
        [[other, number] for other, node in sorted(prompt.items())
         for number, kind in enumerate(info.get(node["class_type"], {}).get("output", ())) if kind == wanted]
    )  # fmt: skip


def missing_node(prompt: Prompt, dice: random.Random, info: Info) -> None:
    del prompt[dice.choice(sorted(prompt))]


def other_class(prompt: Prompt, dice: random.Random, info: Info) -> None:
    node = dice.choice([prompt[name] for name in sorted(prompt)])
    kinds = [each["class_type"] for each in prompt.values()]
    ours = sorted(name for name in info if name.startswith("Cascade"))
    node["class_type"] = dice.choice((*kinds, *ours, "CascadeNothing", "", None, 3, "\ud800"))


def no_node(prompt: Prompt, dice: random.Random, info: Info) -> None:
    """What is no node. Never one without `inputs`: beside a good output it ends ComfyUI 0.30.0's own queue."""
    node = {"class_type": "SaveImage", "inputs": {}}
    prompt[dice.choice((*sorted(prompt), "x", "\ud800"))] = dice.choice((None, [], 3, "x", node))


MUTATORS: tuple[Callable[[Prompt, random.Random, Info], None], ...] = (
    *(other_text, other_text, other_text, other_choice, other_choice, other_choice, fitting_link, fitting_link),
    *(other_value, other_value, deep_value, missing_input, more_inputs, other_link, missing_node, other_class, no_node),
)


def hostile(prompts: dict[str, Prompt], info: Info, dice: random.Random) -> tuple[str, Prompt]:
    """What was done, and the prompt."""
    name = dice.choice(sorted(prompts))
    prompt, notes = copy.deepcopy(prompts[name]), [name]
    for _ in range(dice.choice((1, 1, 2, 3))):
        mutator = dice.choice(MUTATORS)
        try:
            mutator(prompt, dice, info)
        except (IndexError, AttributeError, TypeError, KeyError):
            break  # what an earlier one has left has nothing to change
        notes.append(mutator.__name__)
    return ", ".join(notes), prompt
