"""Folders of networks and LoRAs with something else in them than there should be, and paths that are no files."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from torch import Tensor

from cascade.adapters import read_lora
from cascade.checkpoints import config_of, convert, inspect_file, load_model
from cascade.checkpoints.layouts import DIFFUSERS_FOLDERS
from cascade.checkpoints.saving import foreign_config
from tests.checkpoints.files import network
from tests.fuzz.classes import Case, FuzzClass
from tests.fuzz.damaged_tensors import states
from tests.fuzz.tensors import damaged_bytes, damaged_json, safetensors_bytes, torch_file

READS = (load_model, inspect_file, read_lora)


@cache
def configs() -> dict[str, str]:
    """config.json of each kind that diffusers has."""
    states()
    return {kind: json.dumps(foreign_config(kind, config_of(network(kind)))) for kind in DIFFUSERS_FOLDERS}


def make(dice: random.Random, folder: Path) -> Case:
    """A folder as diffusers or a trainer writes it, one of whose files is then replaced."""
    path = folder / "model"
    path.mkdir()
    match dice.randrange(4):
        case 0:
            pipeline(path, dice)
        case 1:
            shards(path, dice)
        case 2:
            single(path, dice.choice(list(DIFFUSERS_FOLDERS)), dice)
        case _:
            (path / "adapter_model.safetensors").write_bytes(b"")
            (path / "adapter_config.json").write_text('{"lora_alpha": 1}', encoding="utf-8")
    victims = sorted(each for each in path.rglob("*") if each.is_file())
    victim = dice.choice(victims)
    note = replaced(victim, dice)
    given = dice.choice((path, path, victim, path / "model.safetensors.index.json"))
    return Case(given, f"{note} {victim.name}", dice.randrange(len(READS)))


def single(path: Path, kind: str, dice: random.Random) -> None:
    path.mkdir(exist_ok=True)
    if dice.random() < 0.8:
        (path / "config.json").write_text(configs()[kind], encoding="utf-8")
    if dice.random() < 0.2:
        torch_file(dict(states()[kind]), path / "model.bin", dice)
    else:
        (path / "model.safetensors").write_bytes(safetensors_bytes(states()[kind]))


def pipeline(path: Path, dice: random.Random) -> None:
    (path / "model_index.json").write_text("{}", encoding="utf-8")
    for kind in dice.sample(list(DIFFUSERS_FOLDERS), dice.randint(1, 3)):
        single(path / DIFFUSERS_FOLDERS[kind], kind, dice)


def shards(path: Path, dice: random.Random) -> None:
    state: Mapping[str, Tensor] = states()[dice.choice(("stage_a", "previewer"))]
    names = list(state)
    at = dice.randrange(1, len(names))
    weight_map: dict[str, object] = {}
    for number, own in enumerate((names[:at], names[at:]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        (path / file).write_bytes(safetensors_bytes({name: state[name] for name in own}))
        weight_map |= dict.fromkeys(own, file)
    if dice.random() < 0.5:
        strange = (
            "../model",
            "/etc/passwd",
            "",
            ".",
            "model.safetensors.index.json",
            "x" * 300,
            "\x00",
            "a\\b",
            5,
            "\ud800",
        )
        weight_map[dice.choice(names)] = dice.choice(strange)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def replaced(victim: Path, dice: random.Random) -> str:
    """Put something else in place of a file; says what."""
    data = bytearray(victim.read_bytes())
    victim.unlink()
    kinds = ["nothing", "folder", "empty", "zeros", "sparse", "bytes", "json", "text"]
    kinds += ["pipe", "device", "loop", "dangling", "strange name"] if os.name == "posix" else []
    kind = dice.choice(kinds)
    match kind:
        case "folder":
            victim.mkdir()
        case "empty":
            victim.touch()
        case "zeros":
            victim.write_bytes(bytes(1000))
        case "sparse":
            with victim.open("wb") as file:
                file.write(data[: dice.choice((0, 8, 2000))])
                file.truncate(dice.choice((10**7, 10**10)))
        case "bytes":
            damaged_bytes(data, dice)
            victim.write_bytes(data)
        case "json":
            value = damaged_json(json.loads(data), dice) if data[:1] == b"{" else [1]
            victim.write_text(json.dumps(value), encoding="utf-8")
        case "text":
            victim.write_bytes(dice.choice((b"[" * 10**6, b"<html>", b"\xff\xfe", b'"' + b"a" * 10**6, b"9" * 10**5)))
        case "pipe":
            os.mkfifo(victim)
        case "device":
            victim.symlink_to(dice.choice(("/dev/zero", "/dev/stdin", "/dev/null", "/proc/self/mem")))
        case "loop":
            victim.symlink_to(victim.name)
        case "dangling":
            victim.symlink_to("nothing")
        case "strange name":
            Path(os.fsdecode(os.fsencode(victim.parent) + b"/\xff\n.safetensors")).write_bytes(data)
    return kind


def use(case: Case) -> None:
    READS[case.detail](case.path)
    convert(case.path, case.path.parent / "out" / "file.safetensors", layout="comfyui")


CLASSES = (FuzzClass("folders", make, use, errors=(*FuzzClass.errors, FileNotFoundError), prepare=configs),)
