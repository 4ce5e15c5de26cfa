"""Training settings: frozen dataclasses read from a YAML or JSON file, every key checked."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ..errors import InvalidConfig

T = TypeVar("T")

_CHANGEABLE = ("steps", "output", "device", "threads", "checkpoint_every", "sample_every", "log_every")
"""What may differ between a run and its continuation; `steps` may only grow."""


def setting(default: Any = dataclasses.MISSING, *, minimum: float = -math.inf, maximum: float = math.inf) -> Any:
    """A dataclass field whose number must lie in [minimum, maximum] (for a list: each of its numbers)."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training shares. `settings` holds the task's own dataclass, in the file the section named as the task.

    The learning rate rises over `warmup` steps to `lr` and falls on a cosine to `lr_final * lr` at `steps`.
    `batch_size` is that of one micro-step; an optimizer step sees `batch_size * accumulation` samples.
    """

    task: str
    output: Path
    settings: Any
    steps: int = setting(minimum=1)
    batch_size: int = setting(minimum=1)
    seed: int = setting(0, minimum=0)
    accumulation: int = setting(1, minimum=1)
    lr: float = setting(1e-3, minimum=0)
    lr_final: float = setting(0.05, minimum=0, maximum=1)
    warmup: int = setting(0, minimum=0)
    weight_decay: float = setting(0.01, minimum=0)
    clip_norm: float = setting(1.0, minimum=0)
    ema: float = setting(0.999, minimum=0, maximum=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    threads: int | None = setting(None, minimum=1)
    checkpoint_every: int = setting(1000, minimum=1)
    sample_every: int | None = setting(None, minimum=1)
    log_every: int = setting(50, minimum=1)
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float16"

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values, as the file would hold them."""
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "settings"}
        return {**plain, self.task: _plain(self.settings)}


def read_config(
    path: str | Path, settings: Mapping[str, type], *, root: str | Path = ".", changes: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """Read and check a training file.

    `settings` maps a task's name to the dataclass of its section. Relative paths in the file are taken from `root`.
    `changes` replaces keys of the file ("steps", or "stage_b.cache" inside the section).
    Raises InvalidConfig, naming the file and the key.
    """
    path = Path(path)
    data = _read_mapping(path)
    for key, value in (changes or {}).items():
        _put(data, key, value)
    return parse_config(data, settings, where=str(path), root=root)


def parse_config(
    data: Mapping[str, Any], settings: Mapping[str, type], *, where: str, root: str | Path = "."
) -> TrainingConfig:
    """As read_config, from a mapping; `where` is what errors call it."""
    task = data.get("task")
    if not isinstance(task, str) or task not in settings:
        raise InvalidConfig(f"{where}: task is {task!r}; known tasks: {', '.join(settings)}")
    if "settings" in data:
        raise _unknown("settings", [task], where)
    common = {key: value for key, value in data.items() if key != task}
    section = data.get(task) or {}
    common["settings"] = _parse(settings[task], section, f"{where}: {task}", Path(root))
    return _parse(TrainingConfig, common, where, Path(root), hide="settings", also=(task,))


def incompatible_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why a run with settings `before` cannot go on with `now`; empty when it can.

    A key that only one of the two knows, in the file or in its section, is one that the program gained or lost since.
    """
    reasons = [
        f"{key} was {a!r} and is {b!r}"
        for key, a, b in _differences(before, now, optional=2)
        if key.split(".")[0] not in _CHANGEABLE
    ]
    if now["steps"] < before["steps"]:
        reasons.append(f"steps was {before['steps']} and is {now['steps']} (it may only grow)")
    return reasons


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "", *, optional: int = 0
) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) where they differ; in the upper `optional` layers only keys that both have."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*a, *b}):
        x, y = a.get(key), b.get(key)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            found += _differences(x, y, f"{prefix}{key}.", optional=optional - 1)
        elif x != y and (optional <= 0 or (key in a and key in b)):
            found.append((prefix + key, x, y))
    return found


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise InvalidConfig(f"{path}: not valid: {error}") from error
    if not isinstance(data, dict):
        raise InvalidConfig(f"{path}: expected keys and values at the top, found {type(data).__name__}")
    return data


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
    data[last] = value


def _parse(
    cls: type[T], data: Any, where: str, root: Path, *, hide: str | None = None, also: tuple[str, ...] = ()
) -> T:
    if not isinstance(data, Mapping):
        raise InvalidConfig(f"{where}: expected keys and values, found {data!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known:
            raise _unknown(key, [*(k for k in known if k != hide), *also], where)
        place = f"{where}: {key}"
        values[key] = value if key == hide else _convert(hints[key], value, place, root)
        _check_range(values[key], known[key].metadata, place)
    required = (f for f in known.values() if f.default is f.default_factory is dataclasses.MISSING)
    missing = [f.name for f in required if f.name not in values]
    if missing:
        raise InvalidConfig(f"{where}: missing {', '.join(missing)}")
    return cls(**values)


def _unknown(key: Any, known: list[str], where: str) -> InvalidConfig:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    return InvalidConfig(f"{where}: unknown key {key!r}; the nearest known one is {near[0]!r}")


def _convert(hint: Any, value: Any, where: str, root: Path) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _convert(inner[0], value, where, root)
    if origin is Literal:
        choices = typing.get_args(hint)
        return _expect(value in choices, value, where, f"one of {', '.join(map(str, choices))}", value)
    if origin is tuple:
        _expect(isinstance(value, list | tuple) and len(value) > 0, value, where, "a list")
        return tuple(_convert(typing.get_args(hint)[0], v, where, root) for v in value)
    if dataclasses.is_dataclass(hint):
        return _parse(hint, value, where, root)  # type: ignore[arg-type]
    if hint is Path:
        return root / _expect(isinstance(value, str | Path) and str(value), value, where, "a path", value)
    if hint is float:
        return float(_number(value, where))
    if hint is int:
        number = _number(value, where)
        return int(_expect(number == int(number), value, where, "a whole number", number))
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return dict(_expect(isinstance(value, Mapping), value, where, "keys and values", value))
    return _expect(isinstance(value, hint), value, where, hint.__name__, value)


def _number(value: Any, where: str) -> float:
    if isinstance(value, str):  # YAML reads 1e-3 as a word
        with contextlib.suppress(ValueError):
            value = float(value)
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return _expect(ok, value, where, "a number", value)


def _expect(ok: Any, found: Any, where: str, wanted: str, result: Any = None) -> Any:
    if not ok:
        raise InvalidConfig(f"{where}: expected {wanted}, found {found!r}")
    return result


def _check_range(value: Any, limits: Mapping[str, Any], where: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            low, high = limits.get("minimum", -math.inf), limits.get("maximum", math.inf)
            _expect(low <= number <= high, number, where, _range_text(low, high))


def _range_text(low: float, high: float) -> str:
    if high == math.inf:
        return f"at least {low:g}"
    return f"a value from {low:g} to {high:g}" if low > -math.inf else f"at most {high:g}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
