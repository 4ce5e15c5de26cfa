"""Networks in files without fault in form: with other names, shapes, types, factors and configs than they should."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascade.checkpoints import KINDS, config_of, convert, inspect_file, load_model
from cascade.checkpoints.layouts import DIFFUSERS_FOLDERS
from cascade.checkpoints.saving import foreign_config
from tests.checkpoints.files import comfyui_state, network, released_state
from tests.fuzz.classes import Case, FuzzClass
from tests.fuzz.tensors import damaged_json, damaged_state, safetensors_bytes

LAYOUTS = ("cascade", "comfyui", "diffusers")


@cache
def states() -> dict[str, dict[str, Tensor]]:
    """A state dict of every kind as released, and of a checkpoint of ComfyUI."""
    for kind in KINDS:
        load_model(released_state(kind))
    found = {kind: released_state(kind) for kind in KINDS}
    return found | {"comfyui": comfyui_state("stage_c", "effnet", "previewer", "text_encoder", "image_encoder")}


@cache
def configs() -> dict[str, dict[str, Any]]:
    states()
    return {kind: config_of(network(kind)).to_dict() for kind in KINDS}


def use(case: Case) -> None:
    """One of the functions that read a network's file."""
    READS[case.detail[0]](case)


def _inspect(case: Case) -> None:
    json.dumps(inspect_file(case.path).to_dict())


def _load(case: Case) -> None:
    net = load_model(case.path)
    assert all(tensor.device.type == "cpu" for tensor in net.state_dict().values())


def _load_with_check(case: Case) -> None:
    load_model(case.path, dtype=torch.bfloat16, check_finite=True, part=case.detail[1])


def _convert(case: Case) -> None:
    convert(case.path, case.path.parent / "out" / "file.safetensors")


READS = (_inspect, _load, _load_with_check, _convert)


def _detail(dice: random.Random, kind: str) -> tuple[int, str | None]:
    """Which function reads it, and the part that it wants."""
    return dice.randrange(len(READS)), dice.choice((None, kind if kind in KINDS else "effnet"))


def make_tensors(dice: random.Random, folder: Path) -> Case:
    kind = dice.choice(list(states()))
    state, note = damaged_state(states()[kind], dice)
    path = folder / "file.safetensors"
    path.write_bytes(safetensors_bytes(state))
    return Case(path, f"{kind}: {note}", _detail(dice, kind))


def make_config(dice: random.Random, folder: Path) -> Case:
    """A file of ours whose metadata describe another network, or a folder of diffusers whose config.json does."""
    kind = dice.choice(list(KINDS))
    if dice.random() < 0.6:
        data = damaged_json(configs()[kind], dice)
        text = json.dumps(data)
        if dice.random() < 0.1:
            text = dice.choice(
                (text[:-3], "[" * 9000, f'{{"a": {text}}}', text.replace("{", '{"levels": 3, "levels": 4,'))
            )
        metadata = {"cascade.kind": dice.choice((kind, kind, kind, "stage_c", "x")), "cascade.config": text}
        path = folder / "file.safetensors"
        path.write_bytes(safetensors_bytes(states()[kind], metadata))
        return Case(path, f"{kind}: {text[:1000]}", _detail(dice, kind))
    kind = dice.choice(list(DIFFUSERS_FOLDERS))
    path = folder / "prior"
    path.mkdir()
    text = json.dumps(damaged_json(foreign_config(kind, config_of(network(kind))), dice))
    (path / "config.json").write_text(text, encoding="utf-8")
    (path / "model.safetensors").write_bytes(safetensors_bytes(states()[kind]))
    return Case(path, f"{kind}: {text[:1000]}", _detail(dice, kind))


CLASSES = (
    FuzzClass("tensors", make_tensors, use, prepare=states),
    FuzzClass("configs", make_config, use, prepare=configs),
)
