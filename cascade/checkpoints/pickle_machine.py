"""A machine that reads pickles of tensors.

A pickle is a program for a small machine. This one knows tensors, tables, lists, numbers and texts, and refuses the
rest; it calls nothing. A tensor is only described: where its values are is for the reader of the file.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .header import MAX_DIMENSIONS, MAX_NAME

MAX_STEPS = 2_000_000
"""Steps of a pickle, which take about two seconds; a large checkpoint of 5,000 tensors has 250,000."""

STORAGES: Mapping[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
DTYPES: Mapping[str, torch.dtype] = {
    str(dtype): dtype for dtype in (*STORAGES.values(), torch.float8_e4m3fn, torch.float8_e5m2)
}
TABLE = "collections.OrderedDict"
TENSOR, TYPED_TENSOR = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"
PARAMETER = "torch._utils._rebuild_parameter"
IGNORED = frozenset(
    ("torch.Size", "torch.device", "torch.nn.parameter.Parameter", "builtins.set", "argparse.Namespace")
    + ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode")
)
"""What else training states name: settings, and numbers of NumPy. They are read over: nothing is called."""
KNOWN = frozenset({*STORAGES, *DTYPES, *IGNORED, TABLE, TENSOR, TYPED_TENSOR, PARAMETER})


class Damaged(ValueError):
    """A pickle or an archive that is not as torch writes it."""


class Code(ValueError):
    """A pickle that refers to a function or class that is not in `KNOWN`; the text is its name."""


@dataclass(frozen=True)
class Name:
    """A class or function by its name; it is never looked up."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Values of one type that tensors lie in: the name of their place in the file, and how many they are."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Described:
    """A tensor: where its values are in a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


_MARK = object()


class Machine:
    """Reads pickles. Steps cannot do more work than their number, so that a small file cannot take long.

    Attributes:
        storages: key -> storage, of all pickles that it read.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.steps = 0

    def run(self, file: io.BytesIO) -> Any:
        """The value of the pickle at the file's position; afterwards that is behind it.

        Raises:
            Damaged, or one of `_ERRORS`: not a pickle as torch writes it.
            Code: it refers to a function or class that is not known.
        """
        self.stack, self.memo = [], {}
        for code, argument, _ in pickletools.genops(file):
            self.work(1)
            if code.name == "STOP":
                return self.stack.pop()
            step = _STEPS.get(code.name)
            if step is not None:
                step(self, argument)
            elif code.name in _VALUES:
                self.stack.append(argument)
            else:
                raise Damaged(f"its step {code.name} is not supported")
        raise EOFError

    def work(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise Damaged(f"it has more than {MAX_STEPS:,} steps")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Damaged("it takes a value that is not there")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def since_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise Damaged("it has no mark")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise Damaged("it appends to something else than a list")
        self.stack[-1].extend(values)

    def put(self, pairs: list[Any]) -> None:
        table = self.stack[-1]
        if not isinstance(table, dict):
            raise Damaged("it names a value in something else than a table")
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Other names can be nested tuples, which take time without end to compare.
            if not isinstance(name, str | int) or (isinstance(name, str) and len(name) > MAX_NAME):
                raise Damaged("a table has a name that is neither a short text nor a number")
            table[name] = value

    def refer(self, text: str) -> None:
        if text not in KNOWN:
            raise Code(text[:MAX_NAME])
        self.stack.append(Name(text))

    def reduce(self) -> None:
        """A call: of what makes tensors and tables; other calls are read over."""
        function, arguments = self.pop(2)
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Damaged("it calls something that is no function")
        match function.text:
            case "collections.OrderedDict":
                self.stack.append({})
                for pair in arguments[0] if arguments else ():
                    self.work(1)
                    self.put(list(pair[:2]))
            case "torch._utils._rebuild_tensor_v2":
                self.stack.append(_described(arguments[:4], None))
            case "torch._utils._rebuild_tensor_v3":
                self.stack.append(_described(arguments[:4], arguments[6]))
            case "torch._utils._rebuild_parameter":
                self.stack.append(arguments[0])
            case _:
                self.stack.append(function)

    def persistent(self) -> None:
        """A storage, by torch's description of it."""
        [pid] = self.pop(1)
        if not isinstance(pid, tuple) or not 5 <= len(pid) <= 6 or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise Damaged("a storage is not described as torch does it")
        _, kind, key, _, count, *_ = pid
        known = isinstance(kind, Name) and kind.text in STORAGES and isinstance(key, str) and type(count) is int
        if not known or not 0 <= count < 2**63:
            raise Damaged("a storage is not described as torch does it")
        storage = Storage(key, STORAGES[kind.text], count)
        if self.storages.setdefault(key, storage) != storage:
            raise Damaged("a storage is described in two ways")
        self.stack.append(storage)


def _described(arguments: tuple[Any, ...], dtype: Any) -> Described:
    """A tensor that lies in its storage and does not have more values than that."""
    storage, offset, shape, strides = arguments
    tuples = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MAX_DIMENSIONS
    numbers = (offset, *shape, *strides) if tuples else ()
    if not tuples or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise Damaged("a tensor is not described as torch does it")
    if not isinstance(storage, Storage) or not (dtype is None or (isinstance(dtype, Name) and dtype.text in DTYPES)):
        raise Damaged("a tensor has no values")
    found = Described(storage, offset, shape, strides, storage.dtype if dtype is None else DTYPES[dtype.text])
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if found.bytes > storage.bytes or (last + 1) * found.dtype.itemsize > storage.bytes > 0:
        raise Damaged("a tensor has more values than its storage")
    return found


def _nothing(machine: Machine, argument: Any) -> None:
    pass


def _drop(machine: Machine, _: Any) -> None:
    machine.pop(1)


def _tuple(count: int) -> Callable[[Machine, Any], None]:
    return lambda machine, _: machine.stack.append(tuple(machine.pop(count)))


def _new(machine: Machine, _: Any) -> None:
    """An object of a class, from the class and arguments: only read over."""
    machine.stack.append(machine.pop(2)[0])


def _global(machine: Machine, argument: Any) -> None:
    machine.refer(str(argument).replace(" ", "."))


def _stack_global(machine: Machine, _: Any) -> None:
    module, name = machine.pop(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise Damaged("it refers to something without a name")
    machine.refer(f"{module[:MAX_NAME]}.{name[:MAX_NAME]}")


def _remember(machine: Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


_VALUES = frozenset(
    ("NONE", "BININT", "BININT1", "BININT2", "LONG1", "INT", "BINFLOAT", "BINUNICODE")
    + ("SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES")
)
"""Steps that put their argument onto the stack."""
_STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "BUILD": _drop,  # attributes of a table, such as its version
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "POP": _drop,
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.put(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.put(machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": _new,
    "BINPERSID": lambda machine, _: machine.persistent(),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": _remember,
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
}
