"""Training settings: frozen pydantic models read from a YAML or JSON file, every key and value checked."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from ..errors import InvalidConfig, one_line, shown
from ..files import check_name

T = TypeVar("T")

_CHANGEABLE = (
    *("steps", "accumulation", "stretch_schedule", "output", "device", "threads"),
    *("checkpoint_every", "sample_every", "log_every", "validate_every", "keep", "backup_every", "offload"),
    *("trackers", "wandb_project", "async_save"),
)
"""What may differ between a run and its continuation; `steps` may only grow, and `accumulation` times the number of
processes stays."""

FILE_BYTES = 1 << 16
"""Of a settings file. The longest recipe has 2 kB; PyYAML reads 20 kB in a second."""
VALUES = 20_000
"""Keys and values of a settings file, aliases (`*name`) written out: a file of 1 kB can stand for terabytes."""
DEPTH = 32
"""How deep they may be nested."""
SHOWN = 5
"""Mistakes that a message lists before it only counts."""

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
        raise ValueError(f"expected a path, found {shown(value)}")
    root = (info.context or {}).get("root", Path())
    scheme, colon, name = str(value).partition(":")
    return PATH_SCHEMES[scheme](name, root) if colon and scheme in PATH_SCHEMES else root / value


def _writable(path: Path) -> Path:
    check_name(path)
    return path


def _not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("expected at least one item, found none")
    return values


Whole = Annotated[int, BeforeValidator(_to_number)]
Number = Annotated[float, BeforeValidator(_to_number)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0)]
Pixels = Annotated[Whole, Field(ge=32, le=16384)]
Amount = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Several = Annotated[tuple[T, ...], AfterValidator(_not_empty)]
PathFromRoot = Annotated[Path, BeforeValidator(_to_path)]
NewPath = Annotated[PathFromRoot, AfterValidator(_writable)]
"""Where something is written: its name is checked when the settings are read."""


class Settings(BaseModel):
    """A section of a settings file. A key that it does not have is an error that names the nearest one."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                [near] = difflib.get_close_matches(str(key)[:64], cls.model_fields, n=1, cutoff=0.0)
                raise ValueError(f"unknown key {shown(key)}; the nearest known one is {near!r}")
        return data


class TrainingConfig(Settings):
    """What every training shares. Read from a file, it also has the task's own settings, in a field named as the task.

    The learning rate rises over `warmup` steps to `learning_rate` and falls as `lr_scheduler` says to
    `learning_rate_final` of it at `steps`; a constant one stays. A run that is given more `steps` goes on with the rate
    that it has and falls from there; with `stretch_schedule` it takes that of the new length, which may be higher.
    `batch_size` is that of one micro-step; an optimizer step sees `batch_size * accumulation` samples in each process.

    `optimizer`: adamw; adafactor, which needs less memory; adamw_8bit (package bitsandbytes) and prodigy (package
    prodigyopt, with `learning_rate: 1`). `optimizer_args` are further arguments of it.

    `held_out` images are not trained on. Every `validate_every` steps the loss on them is logged, as it is for all and
    for each quarter of the noise levels; data and noise are the same each time.

    `precision` is what is calculated in. With `weights_dtype` bfloat16 the trained weights and what the optimizer keeps
    are rounded too, by chance: half the memory.

    `gradient_checkpointing` calculates each block a second time in the backward pass in place of keeping what it
    calculated: less memory, slower. `torch_compile_backend` (inductor) compiles each block.

    What is sampled and exported is an average of the weights with the decay `ema`, 0 for the weights themselves. It is
    moved every `ema_every` steps, begins at step `ema_start`, and can be kept in the CPU's memory (`ema_device`).

    With `shard` the large networks are split over the processes; with `offload` their weights wait in the CPU's memory.
    The last `keep` states stay in the folder `states`, and one every `backup_every` steps. With `async_save` states are
    written from a copy in the CPU's memory while the training goes on.
    """

    task: str
    output: NewPath
    steps: Count
    batch_size: Annotated[Whole, Field(ge=1, le=65536)]
    seed: Seed = 0
    accumulation: Count = 1
    learning_rate: Amount = 1e-3
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    learning_rate_final: Share = 0.05
    stretch_schedule: StrictBool = False
    warmup: Annotated[Whole, Field(ge=0)] = 0
    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "prodigy"] = "adamw"
    optimizer_args: Mapping[str, Any] = {}
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    weight_decay: Amount = 0.01
    clip_norm: Amount = 1.0
    ema: Share = 0.999
    ema_start: Annotated[Whole, Field(ge=0)] = 0
    ema_every: Count = 1
    ema_device: Literal["same", "cpu"] = "same"
    gradient_checkpointing: StrictBool = False
    torch_compile_backend: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    threads: Annotated[Whole, Field(ge=1, le=1024)] | None = None
    shard: StrictBool = False
    offload: StrictBool = False
    checkpoint_every: Count = 1000
    async_save: StrictBool = False
    keep: Count = 1
    backup_every: Count | None = None
    sample_every: Count | None = None
    log_every: Count = 50
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    wandb_project: str = "stable-cascade"
    held_out: Annotated[Whole, Field(ge=0)] = 0
    validate_every: Count | None = None
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
    return parse_config(read_mapping(Path(path), changes or {}), settings, where=str(path), root=root)


def read_mapping(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values of a YAML or JSON file, with `changes`. Raises InvalidConfig, naming the file."""
    data = _read_mapping(path)
    for key, value in changes.items():
        put(data, key, value, str(path))
    return data


def read_value(text: str, where: str) -> Any:
    """A value as a settings file would have it: 3, 1e-3, [a, b], true. Raises InvalidConfig; `where` names it there."""
    try:
        loader = _Yaml(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _NOT_YAML as error:
        raise InvalidConfig(f"{where}: not valid: {one_line(str(error))}") from error


def parse_config(
    data: Mapping[str, Any], settings: Mapping[str, type[Settings]], *, where: str, root: str | Path = "."
) -> TrainingConfig:
    """As read_config, from a mapping; `where` is what errors call it."""
    _check_values(data, where)
    task = data.get("task")
    if not isinstance(task, str) or task not in settings:
        raise InvalidConfig(f"{where}: task is {shown(task)}; known tasks: {', '.join(settings)}")
    section: Any = {task: (settings[task], ...)}
    whole = create_model(TrainingConfig.__name__, __base__=TrainingConfig, **section)
    try:
        return whole.model_validate(data, context={"root": Path(root)})
    except ValidationError as error:
        raise invalid(where, error) from error


def invalid(where: str, error: ValidationError) -> InvalidConfig:
    """What is wrong, in one line: for each place its keys, what is expected there and what was found."""
    lines = []
    mistakes = error.errors(include_url=False)
    for each in mistakes[:SHOWN]:
        place = "".join(f"{key}: " for key in each["loc"])
        found = "" if each["type"] in ("missing", "value_error") else f", found {shown(each['input'])}"
        lines.append(f"{place}{each['msg'].removeprefix('Value error, ')}{found}")
    if len(mistakes) > SHOWN:
        lines.append(f"and {len(mistakes) - SHOWN} more")
    return InvalidConfig(f"{where}: {'; '.join(lines)}")


def incompatible_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why a run with settings `before` cannot go on with `now`; empty when it can.

    A key that only one of the two knows, in the file or in its section, is one that the program gained or lost since.
    """
    reasons = [
        f"{key} was {shown(a)} and is {shown(b)}"
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


class _Yaml(yaml.SafeLoader):
    """YAML with the values that JSON has: a date is text, and `!!bool`, `!!set` and so on are not taken."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> Any:
        """The one document. Raises ComposerError where it would be too large once its aliases are written out."""
        root: Any = super().get_single_node()
        known = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
        waiting, count = [root], 0
        while waiting and waiting[-1] is not None:
            node = waiting.pop()
            count += 1
            if count > VALUES:
                raise ComposerError(None, None, f"more than {VALUES} values, aliases written out")
            if node.tag not in known:
                raise ConstructorError(None, None, f"the tag {shown(node.tag)}", node.start_mark)
            waiting += _children(node)
        return root


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


# What PyYAML raises for values that are none (`!!bool maybe`, `!!int`, 5000 digits) and for thousands of brackets.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise InvalidConfig(f"{path}: a file of settings is expected here")
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{path}: cannot be read: {error}") from error
    if len(content) > FILE_BYTES:
        raise InvalidConfig(f"{path}: more than {FILE_BYTES} bytes: this is no file of settings")
    data = _read_json(text, path) if path.suffix == ".json" else read_value(text, str(path))
    if not isinstance(data, dict):
        raise InvalidConfig(f"{path}: expected keys and values at the top, found {type(data).__name__}")
    return data


def _read_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path}: not valid: {one_line(str(error))}") from error


def put(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a key of settings: "steps", or "stage_b.cache" in a section. Raises InvalidConfig, which names `where`."""
    *parents, last = key.split(".")
    for number, parent in enumerate(parents):
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            place = ".".join(parents[: number + 1])
            raise InvalidConfig(f"{where}: {shown(key)} cannot be set: {place} is {shown(data)}, which has no keys")
    data[last] = value


def _check_values(data: Any, where: str) -> None:
    """Raises InvalidConfig for more or deeper values than settings have, and for text that no file can hold."""
    waiting: list[tuple[Any, int]] = [(data, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > VALUES or depth > DEPTH:
            raise InvalidConfig(f"{where}: more than {VALUES} values, or nested more than {DEPTH} deep")
        if isinstance(value, str) and not _is_text(value):
            raise InvalidConfig(f"{where}: {shown(value)} has a character that no text has")
        if isinstance(value, int) and value.bit_length() > 64:
            raise InvalidConfig(f"{where}: the number {shown(value)} is too large")
        waiting += [(each, depth + 1) for each in _inside(value)]


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _is_text(value: str) -> bool:
    """Without NUL and halves of surrogate pairs, which paths, files and tokenizers refuse later, or not at all."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value
