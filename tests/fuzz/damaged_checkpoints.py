"""Damaged safetensors files of networks: their headers, shapes, types, offsets and metadata."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

from cascade.checkpoints import load_model, save_model
from cascade.checkpoints.network_kinds import KINDS
from cascade.models import PreviewerConfig
from tests.checkpoints.files import network, released_state
from tests.fuzz.classes import Case, FuzzClass

WORDS = (b"F32", b"F64", b"BF16", b"U8", b"I64", b"F8_E4M3", b"shape", b"dtype", b"data_offsets", b"__metadata__")
NUMBERS = (
    b"0",
    b"-1",
    b"1e9",
    b"4",
    b"18446744073709551615",
    b"9223372036854775807",
    b"null",
    b"[]",
    b"1.0",
    b"1" * 5000,
)


@cache
def originals() -> tuple[bytes, ...]:
    """Small files: one with our metadata, one as released."""
    torch.manual_seed(0)
    net = KINDS["previewer"].network(PreviewerConfig(latent_channels=2, width=4), torch.nn)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        save_model(net, path)
        ours = path.read_bytes()
        save_model(network("stage_c"), path)
        stack = path.read_bytes()
    return ours, stack, save({name: tensor.clone() for name, tensor in released_state("stage_a").items()})


def length_of(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def flip_bits(data: bytearray, dice: random.Random) -> None:
    end = 8 + length_of(data)  # which the flips may change
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(end)] ^= 1 << dice.randrange(8)


def set_bytes(data: bytearray, dice: random.Random) -> None:
    end = 8 + length_of(data)
    for _ in range(dice.randint(1, 4)):
        data[dice.randrange(end)] = dice.choice(b'0123456789{}[],:"\\ \x00\xff')


def change_length(data: bytearray, dice: random.Random) -> None:
    value = dice.choice((0, 1, 2**63, 2**64 - 1, 2**40, 100_000_001, length_of(data) + dice.randint(-40, 40)))
    data[:8] = (value % 2**64).to_bytes(8, "little")


def change_number(data: bytearray, dice: random.Random) -> None:
    places = [i for i in range(8, 8 + length_of(data)) if data[i : i + 1].isdigit()]
    at = dice.choice(places)
    replace(data, at, at + 1, dice.choice(NUMBERS))


def change_word(data: bytearray, dice: random.Random) -> None:
    old = dice.choice(WORDS)
    at = data.find(old, dice.randrange(8, 8 + length_of(data)))
    if at >= 0:
        replace(data, at, at + len(old), dice.choice(WORDS))


def cut(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(8, 8 + length_of(data))
    replace(data, at, at + dice.randint(1, 60), b"")


def double(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(8, 8 + length_of(data))
    replace(data, at, at, bytes(data[at : at + dice.randint(1, 80)]))


def nest(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(8, 8 + length_of(data))
    replace(data, at, at, dice.choice((b"[", b'{"a":')) * dice.choice((1, 50, 20_000)))


def truncate(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def extend(data: bytearray, dice: random.Random) -> None:
    data += bytes(dice.randint(1, 100))


def replace(data: bytearray, begin: int, end: int, new: bytes) -> None:
    """Change a stretch of the header, most often with the length that it then has."""
    length = length_of(data) + len(new) - (min(end, len(data)) - begin)
    data[begin:end] = new
    data[:8] = length.to_bytes(8, "little")


def change_entry(data: bytearray, dice: random.Random) -> None:
    """A header that is right in form and wrong in what it says."""
    length = length_of(data)
    header = json.loads(data[8 : 8 + length])
    name = dice.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    match dice.randrange(5):
        case 0:
            entry["shape"] = [dice.choice((0, 1, 7, 2**62, -1)) for _ in range(dice.randint(0, 10))]
        case 1:
            entry["data_offsets"][dice.randrange(2)] += dice.choice((-8, -1, 1, 8, 2**50))
        case 2:
            entry["dtype"] = dice.choice(("F64", "F16", "U8", "I64", "F4", 5, None, ["F32"]))
        case 3:
            header[name + ".more"] = header.pop(name)
        case _:
            entry["shape"] = entry["shape"][::-1]
    text = json.dumps(header).encode()
    data[: 8 + length] = len(text).to_bytes(8, "little") + text


def change_metadata(data: bytearray, dice: random.Random) -> None:
    length = length_of(data)
    header = json.loads(data[8 : 8 + length])
    metadata = header.setdefault("__metadata__", {"cascade.kind": "stage_a", "cascade.config": "{}"})
    text = metadata.get("cascade.config", "{}")
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    if digits and dice.random() < 0.8:
        at = dice.choice(digits)
        text = text[:at] + dice.choice(("9" * 15, "-3", "0", "null", '"a"', "[]", "2.5", "true")) + text[at + 1 :]
    else:
        text = dice.choice(("", "[]", "5", '{"levels": 99999999999}', '{"levels": [[]]}', "[" * 9000))
    metadata["cascade.config"] = text
    metadata["cascade.kind"] = dice.choice((metadata.get("cascade.kind", ""), "stage_c", "stage_z"))
    raw = json.dumps(header).encode()
    data[: 8 + length] = len(raw).to_bytes(8, "little") + raw


MUTATORS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bits,
    set_bytes,
    change_length,
    change_number,
    change_word,
    cut,
    double,
    nest,
    truncate,
    extend,
    change_entry,
    change_metadata,
)


def make(dice: random.Random, folder: Path) -> Case:
    data = bytearray(dice.choice(originals()))
    mutator = dice.choice(MUTATORS)
    mutator(data, dice)
    path = folder / "file.safetensors"
    path.write_bytes(data)
    return Case(path, mutator.__name__)


def use(case: Case) -> None:
    load_model(case.path)


CLASSES = (FuzzClass("headers", make, use, prepare=originals),)
