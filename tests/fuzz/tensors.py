"""What the damaged files of tensors have in common: changes of a state dict, and files in every form."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

State = dict[str, Tensor]

TYPES = (
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
)
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 2.5, 1e300, -(10**9), 2**31, 2**63, 2**64, 10**15, 10**400, 0.0, -0.0),
    *(True, None, "", "a", "\ud800", "x" * 5000, "nan", [], [[]], {}, {"a": {}}, float("nan"), float("inf")),
)
"""What may stand in a config for a number; all can be written as JSON, as Python writes it."""


def damaged_state(state: Mapping[str, Tensor], dice: random.Random) -> tuple[State, str]:
    """A state dict with some tensors changed, and what was done."""
    found, notes = dict(state), []
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        if found:
            name = dice.choice(list(found))
            change = dice.choice((_shape, _type, _values, _name, _drop, _scale, _twice))
            change(found, name, dice)
            notes.append(f"{change.__name__} {name[:200]}")
    return found, "; ".join(notes)


def _shape(state: State, name: str, dice: random.Random) -> None:
    tensor = state[name]
    shape = list(tensor.shape)
    match dice.randrange(6):
        case 0:
            shape = [dice.choice((0, 1, 2, 3, 5, 64)) for _ in range(dice.randint(0, 5))]
        case 1 if shape:
            shape[dice.randrange(len(shape))] = dice.choice((0, 1, 2, 3, 7, 12, 65, 128))
        case 2:
            shape = [*shape, 1]
        case 3:
            shape = shape[1:]
        case 4:
            shape = shape[::-1]
        case _:
            shape = [1, *shape]
    if torch.Size(shape).numel() < 1_000_000:
        state[name] = torch.zeros(shape, dtype=tensor.dtype)


def _type(state: State, name: str, dice: random.Random) -> None:
    state[name] = state[name].to(dice.choice(TYPES))


def _values(state: State, name: str, dice: random.Random) -> None:
    if state[name].is_floating_point() and state[name].dtype.itemsize > 1:
        value = dice.choice((float("nan"), float("inf"), 0.0, 3e38, 1e-45))
        state[name] = torch.full(state[name].shape, value).to(state[name].dtype)
    else:
        state[name] = (torch.zeros(state[name].shape) + dice.choice((0, 1, 100))).to(state[name].dtype)


def _name(state: State, name: str, dice: random.Random) -> None:
    tensor = state.pop(name)
    match dice.randrange(6):
        case 0:
            name = name.replace(dice.choice("0123456789"), dice.choice(("1", "99999", "-1", "٣", "0" * 300, "")))
        case 1:
            name = dice.choice(("\x1b[31m", "a\nb", "\u2028", "\x00", "{}", "%s", "..", "/etc/", "é")) + name
        case 2:
            name = name + dice.choice((".weight", ".bias", ".scale_weight", ".alpha", "." * 50, "x" * 900))
        case 3:
            at = dice.randrange(len(name) + 1)
            name = name[:at] + dice.choice((".", "_", " ", "*", "[", "0.")) + name[at:]
        case 4:
            name = (
                dice.choice(("model.diffusion_model.", "vae.", "lora_unet_", "base_model.model.", "state_dict.")) + name
            )
        case _:
            name = name.partition(".")[2]
    state[name] = tensor


def _drop(state: State, name: str, dice: random.Random) -> None:
    del state[name]


def _scale(state: State, name: str, dice: random.Random) -> None:
    """Float8 with a factor, mostly of a wrong shape."""
    rows = state[name].shape[0] if state[name].dim() else 1
    shape = dice.choice(((), (1,), (rows,), (rows, 1), (rows + 1,), (0,), (2, 2), (1, rows), (rows, 1, 1), (1,) * 3))
    ending = dice.choice((".scale_weight", ".weight_scale", ".scale_input"))
    factor = torch.ones(shape, dtype=dice.choice((torch.float32, torch.int32, torch.bool, torch.float8_e4m3fn)))
    state[name] = state[name].to(torch.float8_e4m3fn)
    state[name.removesuffix(".weight") + ending] = factor


def _twice(state: State, name: str, dice: random.Random) -> None:
    other = dice.choice(list(state))
    state[dice.choice((name + ".more", name.upper(), other))] = state[name]


def safetensors_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    return save({name: tensor.clone().contiguous() for name, tensor in state.items()}, dict(metadata or {}))


def torch_file(content: Any, path: Path, dice: random.Random) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, path, _use_new_zipfile_serialization=dice.random() < 0.7)


def damaged_bytes(data: bytearray, dice: random.Random, begin: int = 0, end: int | None = None) -> None:
    """Bytes between two places changed, cut out, doubled or added."""
    end = min(len(data), len(data) if end is None else end)
    for _ in range(dice.choice((1, 1, 2, 6))):
        at = dice.randrange(begin, max(begin + 1, end))
        match dice.randrange(5):
            case 0 | 1:
                data[at : at + 1] = bytes((dice.randrange(256),))
            case 2:
                del data[at : at + dice.randint(1, 30)]
            case 3:
                data[at:at] = data[at : at + dice.randint(1, 60)]
            case _:
                data[at:at] = dice.randbytes(dice.randint(1, 8))


def damaged_json(value: Any, dice: random.Random) -> Any:
    """Plain data with one value in it, or one name, replaced."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        name = dice.choice(list(value))
        if dice.random() < 0.1:
            return {n: v for n, v in value.items() if n != name} | {dice.choice(("more", "", name * 2)): value[name]}
        return value | {name: damaged_json(value[name], dice)}
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        if dice.random() < 0.2:
            return value * dice.choice((0, 2, 100))
        return [*value[:at], damaged_json(value[at], dice), *value[at + 1 :]]
    return dice.choice(NUMBERS)
