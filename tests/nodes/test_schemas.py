"""Ids, names, order and defaults of the nodes are public for ever.

They stand in schemas.json. New inputs go last, with a default; a node that is replaced stays, marked deprecated.
Where a change is meant, `pytest tests/nodes/test_schemas.py --update-schemas` writes the file anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).with_name("schemas.json")
FILES = re.compile(
    r"(unet|vae|clip|clip_vision|ckpt|second_ckpt|encoder|control_net|instruct|guide|lora|embedding|sampler|prior"
    r"|ip_adapter)_name\d?|previewer|descriptor|lora_stage_[bc]"
)
"""Inputs whose choices are the artist's files, or the host's own."""
CONSTRAINTS = ("default", "min", "max", "step", "multiline", "control_after_generate")


def ours(host: Any) -> dict[str, Any]:
    return {name: kind for name, kind in host.classes.items() if name.startswith("Cascade")}


def schema(kind: Any) -> dict[str, Any]:
    types = kind.INPUT_TYPES()
    inputs = [
        _input(name, spec, group) for group in ("required", "optional") for name, spec in types.get(group, {}).items()
    ]
    outputs = [list(pair) for pair in zip(kind.RETURN_NAMES, kind.RETURN_TYPES, strict=True)]
    return {"category": kind.CATEGORY, "inputs": inputs, "outputs": outputs}


def _input(name: str, spec: Any, group: str) -> dict[str, Any]:
    kind, options = spec
    found = {"name": name, "type": kind, "optional": group == "optional"}
    found |= {key: options[key] for key in CONSTRAINTS if options.get(key) is not None and options[key] is not False}
    if kind == "COMBO" and not FILES.fullmatch(name):
        found["options"] = list(options["options"])
    return found


def test_schemas_are_as_they_were(host: Any, request: pytest.FixtureRequest) -> None:
    found = {name: schema(kind) for name, kind in sorted(ours(host).items())}
    if request.config.getoption("--update-schemas", default=False):
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(FILE.read_text(encoding="utf-8"))


def test_ids_and_categories(host: Any) -> None:
    assert len(ours(host)) == 56
    for kind in ours(host).values():
        assert kind.CATEGORY.startswith("Stable Cascade/")
        assert kind.GET_SCHEMA().display_name.endswith("(Stable Cascade)")
        assert kind.DESCRIPTION


def test_every_input_and_output_has_a_tooltip(host: Any) -> None:
    for name, kind in ours(host).items():
        for inputs in map(kind.INPUT_TYPES().get, ("required", "optional")):
            assert [each for each, spec in (inputs or {}).items() if not spec[1].get("tooltip")] == [], name
        assert all(kind.OUTPUT_TOOLTIPS), name


def test_the_tiny_cascade_is_the_first_choice_everywhere(host: Any) -> None:
    tiny = host.pack("nodes.host.folders").TINY
    chosen = {"unet_name", "vae_name", "clip_name", "ckpt_name", "lora_name", "embedding_name"}
    for name, kind in ours(host).items():
        for each, spec in kind.INPUT_TYPES()["required"].items():
            if each in chosen:
                assert spec[1]["options"][0] == spec[1]["default"] == tiny, name


def test_schemas_forget_what_an_older_host_does_not_know(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    types = host.pack("nodes.types")

    @dataclass
    class OlderSchema:
        node_id: str

    class Older:
        @dataclass
        class Input:
            id: str
            default: int

    monkeypatch.setattr(types.io, "Schema", OlderSchema)
    assert types.schema(node_id="X", search_aliases=["x"], essentials_category="X") == OlderSchema("X")
    assert types.field(Older, "x", default=1, advanced=True) == Older.Input("x", 1)


def test_a_misspelt_keyword_is_refused(host: Any) -> None:
    types = host.pack("nodes.types")
    with pytest.raises(TypeError, match="serach_aliases"):
        types.schema(node_id="X", inputs=[], outputs=[], serach_aliases=["x"])
    with pytest.raises(TypeError, match="tootlip"):
        types.field(types.io.Int, "x", default=1, tootlip="x")
