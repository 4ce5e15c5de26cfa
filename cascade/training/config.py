"""Training settings: frozen pydantic models read from a YAML or JSON file, every key and value checked."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)

from ..errors import InvalidConfig

T = TypeVar("T")

_CHANGEABLE = ("steps", "output", "device", "threads", "checkpoint_every", "sample_every", "log_every")
"""What may differ between a run and its continuation; `steps` may only grow."""

PATH_SCHEMES: dict[str, Callable[[str, Path], Path]] = {}
"""Scheme -> (what follows `SCHEME:` in a path of a settings file, root) -> path. Raises ValueError."""


def _to_number(value: Any) -> Any:
    """YAML reads 1e-3 as a string; pydantic would take true for 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {value}")
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _to_path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"expected a path, found {value!r}")
    root = (info.context or {}).get("root", Path())
    scheme, colon, name = str(value).partition(":")
    return PATH_SCHEMES[scheme](name, root) if colon and scheme in PATH_SCHEMES else root / value


def _not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("expected at least one item, found none")
    return values


Whole = Annotated[int, BeforeValidator(_to_number)]
Number = Annotated[float, BeforeValidator(_to_number)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0)]
Pixels = Annotated[Whole, Field(ge=32)]
Amount = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Several = Annotated[tuple[T, ...], AfterValidator(_not_empty)]
PathFromRoot = Annotated[Path, BeforeValidator(_to_path)]


class Settings(BaseModel):
    """A section of a settings file. A key that it does not have is an error that names the nearest one."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                [near] = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.0)
                raise ValueError(f"unknown key {key!r}; the nearest known one is {near!r}")
        return data


class TrainingConfig(Settings):
    """What every training shares. Read from a file, it also has the task's own settings, in a field named as the task.

    The learning rate rises over `warmup` steps to `learning_rate` and falls on a cosine to
    `learning_rate_final` of it at `steps`.
    `batch_size` is that of one micro-step; an optimizer step sees `batch_size * accumulation` samples.
    """

    task: str
    output: PathFromRoot
    steps: Count
    batch_size: Count
    seed: Seed = 0
    accumulation: Count = 1
    learning_rate: Amount = 1e-3
    learning_rate_final: Share = 0.05
    warmup: Annotated[Whole, Field(ge=0)] = 0
    weight_decay: Amount = 0.01
    clip_norm: Amount = 1.0
    ema: Share = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    threads: Count | None = None
    checkpoint_every: Count = 1000
    sample_every: Count | None = None
    log_every: Count = 50
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float16"

    @property
    def settings(self) -> Any:
        """The task's own."""
        return getattr(self, self.task)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values, as the file would hold them."""
        return self.model_dump(mode="json")


def read_config(
    path: str | Path,
    settings: Mapping[str, type[Settings]],
    *,
    root: str | Path = ".",
    changes: Mapping[str, Any] | None = None,
) -> TrainingConfig:
    """Read and check a training file.

    `settings` maps a task's name to the settings of its section. Relative paths in the file are taken from `root`.
    `changes` replaces keys of the file ("steps", or "stage_b.cache" inside the section).
    Raises InvalidConfig, naming the file and the key.
    """
    path = Path(path)
    data = _read_mapping(path)
    for key, value in (changes or {}).items():
        put(data, key, value)
    return parse_config(data, settings, where=str(path), root=root)


def parse_config(
    data: Mapping[str, Any], settings: Mapping[str, type[Settings]], *, where: str, root: str | Path = "."
) -> TrainingConfig:
    """As read_config, from a mapping; `where` is what errors call it."""
    task = data.get("task")
    if not isinstance(task, str) or task not in settings:
        raise InvalidConfig(f"{where}: task is {task!r}; known tasks: {', '.join(settings)}")
    section: Any = {task: (settings[task], ...)}
    whole = create_model(TrainingConfig.__name__, __base__=TrainingConfig, **section)
    try:
        return whole.model_validate(data, context={"root": Path(root)})
    except ValidationError as error:
        raise invalid(where, error) from error


def invalid(where: str, error: ValidationError) -> InvalidConfig:
    """What is wrong, in one line: for each place its keys, what is expected there and what was found."""
    lines = []
    for each in error.errors(include_url=False):
        place = "".join(f"{key}: " for key in each["loc"])
        found = "" if each["type"] in ("missing", "value_error") else f", found {each['input']!r}"
        lines.append(f"{place}{each['msg'].removeprefix('Value error, ')}{found}")
    return InvalidConfig(f"{where}: {'; '.join(lines)}")


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


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of settings ("steps", or "stage_b.cache" inside a section)."""
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
    data[last] = value
