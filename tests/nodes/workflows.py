"""The templates of the page, and what the page makes of them when an artist presses Run."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tests.nodes.hosting import Graph

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
CHAINS = [name for name in NAMES if name.startswith("Chain ")]
"""With Stable Diffusion 2.x."""
SAMPLES = ROOT / "web" / "samples"
"""Images that templates start from. The page copies them into ComfyUI's input folder (web/js/samples.js)."""
ELSEWHERE = ("Text to Image (Stable Cascade)", "Face Identity", *CHAINS)
"""They need files and a face detector that are not part of the pack: the image beside them is their graph."""
NOTES = {"MarkdownNote", "Note"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEEDS = {"seed", "noise_seed"}
"""Inputs that the page gives a *control after generate*, where the node does not say otherwise."""
MUTED = 2
UPLOAD = "upload"
"""The page's own button of Load Image."""

Specs = dict[str, Any]


def workflow(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(flow: dict[str, Any]) -> list[dict[str, Any]]:
    """Its nodes."""
    return [node for node in flow["nodes"] if node["type"] not in NOTES]


def unmuted(flow: dict[str, Any]) -> dict[str, Any]:
    """A template with all its nodes at work."""
    flow = copy.deepcopy(flow)
    for node in flow["nodes"]:
        node["mode"] = 0
    return flow


def prompt_of(flow: dict[str, Any]) -> str:
    """What its one text node says that the image should show."""
    [text] = [node["widgets_values"][0] for node in nodes_of(flow) if node["type"] == "CascadeTextEncode"]
    return text


def specs_of(kind: type[Any]) -> Specs:
    """A node's inputs as the host describes them: name -> (type or choices, options)."""
    types = kind.INPUT_TYPES()
    return {**types.get("required", {}), **types.get("optional", {})}


def is_widget(spec: Any) -> bool:
    return isinstance(spec[0], list) or spec[0] in WIDGETS


def options_of(spec: Any) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 else {}


def choices_of(spec: Any) -> list[Any] | None:
    return spec[0] if isinstance(spec[0], list) else options_of(spec).get("options")


def widgets_of(specs: Specs) -> Iterator[str | None]:
    """The names that the saved values of a node belong to, in order; None for the page's own."""
    for name, spec in specs.items():
        if is_widget(spec):
            yield name
            if options_of(spec).get("control_after_generate", name in SEEDS):
                yield None
            if options_of(spec).get("image_upload"):
                yield None


def values_of(node: dict[str, Any], specs: Specs) -> dict[str, Any]:
    """A node's saved values by name. Raises ValueError where there are more or fewer than the node has."""
    return {name: value for name, value in zip(widgets_of(specs), node["widgets_values"], strict=True) if name}


def to_prompt(flow: dict[str, Any], classes: dict[str, Any]) -> dict[str, Any]:
    """What the page sends for a workflow."""
    sources = {link[0]: [str(link[1]), link[2]] for link in flow["links"]}
    prompt = {}
    for node in nodes_of(flow):
        if node["mode"] == MUTED:
            continue
        links = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        inputs = {**values_of(node, specs_of(classes[node["type"]])), **links}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def run(host: Any, flow: dict[str, Any]) -> list[Image.Image]:
    """Run a template; what it saved, in order."""
    saved = Path(host.base) / "output"
    before = set(saved.rglob("*.png"))
    host.run(Graph(to_prompt(flow, host.classes)))
    return [Image.open(path).convert("RGB") for path in sorted(set(saved.rglob("*.png")) - before)]


def with_values(flow: dict[str, Any], host: Any, kind: str, **values: Any) -> dict[str, Any]:
    """A template with other values in the nodes of a kind."""
    flow = copy.deepcopy(flow)
    for node in nodes_of(flow):
        if node["type"] == kind:
            names = list(widgets_of(specs_of(host.classes[kind])))
            pairs = zip(names, node["widgets_values"], strict=True)
            node["widgets_values"] = [values.get(name or "", value) for name, value in pairs]
    return flow
