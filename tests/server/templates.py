"""The templates of the tiny cascade as prompts for a server."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

from tests.nodes.workflows import ELSEWHERE, NAMES, SAMPLES, to_prompt, workflow
from tests.server.prompts import Prompt
from tests.server.serving import Server

TINY = [name for name in NAMES if name not in ELSEWHERE]
"""Templates that need no other files."""
TRAINING = ("CascadeTrainLora", "CascadeTrainControlNet", "CascadeFinetune")


class _Classes(dict[str, Any]):
    """A server's nodes, described as they would describe themselves."""

    def __missing__(self, kind: str) -> Any:
        return SimpleNamespace(INPUT_TYPES=lambda: self["info"][kind]["input"])


def prompts(server: Server, *, steps: int) -> dict[str, Prompt]:
    """Name -> prompt with few steps; the images that they start from are put into the server's input folder."""
    for path in SAMPLES.iterdir():
        shutil.copy(path, server.base / "input")
    classes = _Classes(info=server.json("/object_info"))
    found = {name: to_prompt(workflow(name), classes) for name in TINY}
    for prompt in found.values():
        for node in prompt.values():
            inputs = node["inputs"]
            if "steps" in inputs:
                inputs["steps"] = steps
            if node["class_type"] in TRAINING:
                inputs["existing_run"] = "restart"
    return found
