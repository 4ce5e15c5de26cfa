"""Damaged files of torch.save: their bytes, the programs in them, their archives, and tensors of every variant."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cascade.adapters import read_lora
from cascade.checkpoints import load_model
from tests.checkpoints.files import released_state
from tests.fuzz.classes import Case, FuzzClass
from tests.fuzz.damaged_tensors import states
from tests.fuzz.tensors import damaged_bytes, torch_file

HARM = "harmed"


@cache
def originals() -> dict[bool, bytes]:
    """The same network in both formats: True for an archive."""
    states()
    found = {}
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(released_state("previewer"), file, _use_new_zipfile_serialization=zipped)
        found[zipped] = file.getvalue()
    return found


def make_bytes(dice: random.Random, folder: Path) -> Case:
    data = bytearray(originals()[dice.random() < 0.5])
    # The pickle lies before the numbers, an archive's list behind them.
    near = dice.random() < 0.8
    damaged_bytes(data, dice, 0 if near else len(data) - 6000, 9000 if near else None)
    if dice.random() < 0.1:
        del data[dice.randrange(len(data)) :]
    path = folder / dice.choice(("file.pt", "file.bin", "file.safetensors"))
    path.write_bytes(data)
    return Case(path)


def variants(dice: random.Random) -> Any:
    """Tensors that are not plain values in a file."""
    ones = torch.ones(4, 4)
    shared = torch.ones(1000)
    return dice.choice(
        (
            lambda: torch.zeros(1, dtype=torch.float32).expand(10**9, 2),
            lambda: torch.zeros((), dtype=torch.uint8).expand(2**40),
            lambda: torch.as_strided(shared, (900, 100), (1, 1)),
            lambda: torch.empty(10**12, 4, device="meta"),
            lambda: torch.nested.nested_tensor([ones, ones[:2]], layout=torch.jagged),
            lambda: ones.to_sparse(),
            lambda: ones.to_sparse_csr(),
            lambda: torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
            lambda: ones.to(torch.complex64),
            lambda: ones.to(torch.float8_e4m3fnuz),
            lambda: ones.to(torch.float8_e5m2),
            lambda: ones.to(torch.uint16),
            lambda: torch.nn.Parameter(ones),
            lambda: ones.t()[1:],
            lambda: ones[:0],
            lambda: torch.ones(4).conj().imag if dice.random() < 0.1 else torch.complex(ones, ones).conj(),
            lambda: {"a": ones},
            lambda: [ones],
            lambda: bytearray(100),
            lambda: OrderedDict(a=1),
            lambda: torch.Size((1, 2)),
            lambda: torch.device("cuda"),
            lambda: torch.float32,
            lambda: "text" * 1000,
            lambda: 10**300,
        )
    )()


def make_variants(dice: random.Random, folder: Path) -> Case:
    state: dict[Any, Any] = dict(released_state("previewer"))
    name = dice.choice(list(state))
    note = "replaced"
    try:
        state[name] = variants(dice)
    except RuntimeError:  # a variant that this torch cannot make
        note = "as it was"
    match dice.randrange(6):
        case 0:
            state[((((1, 2), 3), name), 5)] = state.pop(name)
        case 1:
            state = {"state_dict": state, "step": 5}
        case 2:
            # One storage under many names
            state |= {f"{name}.{number}": state[name] for number in range(dice.choice((2, 500)))}
        case _:
            pass
    path = folder / "file.pt"
    try:
        torch_file(state, path, dice)
    except (RuntimeError, NotImplementedError, AttributeError):
        torch_file({}, path, dice)
    return Case(path, f"{note} {name}")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "harm")


NAMES = (
    *("collections OrderedDict", "collections Counter", "builtins bytearray", "builtins set", "builtins eval"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch FloatStorage", "torch float32"),
    *("torch Size", "torch device", "os system", "posix system", "_codecs encode", "torch.storage UntypedStorage"),
    *("torch.nn.parameter Parameter", "builtins complex", "torch._utils _rebuild_meta_tensor_no_storage"),
)


def program(dice: random.Random) -> bytes:
    """Steps of a pickle by chance, most often such that each finds what it takes on the stack."""
    data = bytearray(b"\x80\x02")
    depth = 0
    for _ in range(dice.choice((3, 10, 40, 200))):
        step = dice.randrange(16)
        match step:
            case 0 | 1:
                data += b"K" + bytes((dice.randrange(256),))
            case 2:
                data += b"J" + dice.choice((2**31 - 1, -1, 0, 10**9)).to_bytes(4, "little", signed=True)
            case 3:
                data += b"X" + dice.choice((3, 3, 3, 2**31 - 1, 2**32 - 1)).to_bytes(4, "little") + b"abc"
            case 4:
                data += dice.choice((b"}", b"]", b")", b"N", b"\x88", b"\x8f"))
            case 5 | 6:
                data += b"c" + dice.choice(NAMES).replace(" ", "\n").encode() + b"\n"
            case 7:
                data += b"\x8a" + bytes((dice.choice((1, 8, 255)),)) + b"\xff" * 8
            case 8:
                data += b"q" + bytes((dice.randrange(4),))
            case 9:
                data += b"h" + bytes((dice.randrange(4),))
            case 10 if depth > 0:
                data += dice.choice((b"\x85", b"R", b"b", b"Q", b"\x81"))
                continue
            case 11 if depth > 1:
                data += dice.choice((b"\x86", b"R", b"a", b"\x81"))
                depth -= 1
                continue
            case 12 if depth > 2:
                data += dice.choice((b"\x87", b"s"))
                depth -= 2
                continue
            case 13:
                data += b"(" + b"K\x01" * dice.randint(0, 5) + dice.choice((b"t", b"l", b"d", b"u", b"e"))
            case 14:
                data += b"r" + dice.choice((0, 2**31, 2**32 - 1)).to_bytes(4, "little")
            case _:
                data += dice.choice(
                    (b"I99999999999\n", b"\x8e" + b"\xff" * 7 + b"\x00", b"\x96" + (2**40).to_bytes(8, "little"))
                )
        depth += 1
    return bytes(data + b".")


def doubled(dice: random.Random) -> bytes:
    """A value that doubles with each step, as a table's name or its value."""
    steps = b"K\x01q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(dice.choice((5, 30, 60))))
    value = dice.choice((b"X\x01\x00\x00\x00ah\x00", b"h\x00K\x01"))
    return b"\x80\x02" + steps + b"}" + value + b"s."


def make_programs(dice: random.Random, folder: Path) -> Case:
    path = folder / "file.pt"
    match dice.randrange(6):
        case 0:
            data = doubled(dice)
        case 1:
            data = pickle.dumps({"a": Evil(folder / HARM)}, protocol=dice.randint(2, 5))
        case 2:
            data = b"\x80\x02cbuiltins\nbytearray\nJ" + (2**31 - 1).to_bytes(4, "little") + b"\x85R."
        case 3:
            # Runs of one step, to see what each costs
            data = (
                b"\x80\x02"
                + dice.choice((b"N", b"(", b"}q\x00", b"]", b")\x85", b"Nq\x00h\x00"))
                * dice.choice((20_000, 20_000, 20_000, 300_000))
                + b"."
            )
        case _:
            data = program(dice)
    if dice.random() < 0.5:
        path.write_bytes(data)
        return Case(path, "plain")
    packed = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w", packed) as archive:
        archive.writestr("archive/data.pkl", data)
        if dice.random() < 0.5:
            archive.writestr("archive/data/0", bytes(dice.choice((0, 64, 10_000_000 if packed else 100))))
    return Case(path, "archive")


def use(case: Case) -> None:
    error: Exception | None = None
    for read in (load_model, read_lora):
        try:
            read(case.path)
        except FuzzClass.errors as found:
            error = found
    if error is not None:
        raise error


CLASSES = (
    FuzzClass("pickle bytes", make_bytes, use, prepare=originals),
    FuzzClass("pickle variants", make_variants, use, prepare=originals),
    FuzzClass("pickle programs", make_programs, use, prepare=originals),
)
