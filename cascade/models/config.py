"""Base classes of the networks' configs: levels, and conversion to and from plain data."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

C = TypeVar("C", bound="Config")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A frozen description of a network, from which it can be built without its weights."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data (numbers, strings, lists, dicts) that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
        """Inverse of `to_dict`; lists become tuples.

        Raises:
            ValueError: names that this config does not have, or values of a wrong type or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        config = cls(**{name: cls._read(name, value) for name, value in data.items()})
        check_types(config)
        return config

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        return _frozen(value)


MAX_NUMBER = 2**31 - 1
"""Largest whole number of a config, far above every size of a network."""


def check_types(config: Any) -> None:
    """Raises ValueError if a field of a config, which may be from a file, has a wrong type or is out of range."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if not _fits(getattr(config, name), hint):
            raise ValueError(f"{name} is not valid: it must be {_wanted(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is tuple:
        inner, *rest = typing.get_args(hint)
        right = isinstance(value, tuple) and (rest == [Ellipsis] or len(value) == 1 + len(rest))
        return right and all(_fits(item, inner) for item in value)
    if hint is int:
        return type(value) is int and 0 <= value <= MAX_NUMBER
    if hint is float:
        return type(value) in (int, float) and 0 < value < math.inf
    if dataclasses.is_dataclass(hint):
        right = type(value) is hint
        return right and all(_fits(getattr(value, n), h) for n, h in typing.get_type_hints(hint).items())
    return isinstance(value, hint)


def _wanted(hint: Any) -> str:
    return {int: "a whole number from 0", float: "a number above 0"}.get(hint, str(getattr(hint, "__name__", hint)))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Level:
    """One resolution of the stack of Stage B and Stage C.

    Args:
        width: channels.
        heads: attention heads; 0 if the pattern has no attention.
        depth: repetitions of the pattern, in the down path and in the up path.
        pattern: the blocks in order: C residual convolution, T timestep, A attention, F feed-forward.
        down_repeats: runs of the whole level in the down path, with a 1 x 1 convolution between them.
        up_repeats: the same in the up path.
    """

    width: int
    heads: int
    depth: int
    pattern: str = "CTA"
    down_repeats: int = 1
    up_repeats: int = 1

    def __post_init__(self) -> None:
        if unknown := set(self.pattern) - set("CTAF"):
            raise ValueError(f"a level's pattern is made of C, T, A and F, not {', '.join(sorted(unknown))}")
        if "A" in self.pattern and (self.heads < 1 or self.width % self.heads):
            raise ValueError(f"a level of width {self.width} cannot have {self.heads} attention heads")


@dataclass(frozen=True, kw_only=True)
class Process(Config):
    """The diffusion process that a network was trained for, by the names of the registries in `cascade.diffusion`.

    Args:
        schedule: of the noise levels.
        scaling: factors of image and noise.
        target: what the network predicts.
        noise_condition: how it reads the noise level.
        shift: of the schedule in the training. Runs have one of their own, so it makes no difference to them.
    """

    schedule: str = "cosine"
    scaling: str = "vp"
    target: str = "epsilon"
    noise_condition: str = "cosine_t"
    shift: float = dataclasses.field(default=1.0, compare=False)


@dataclass(frozen=True, kw_only=True)
class StackConfig(Config):
    """What Stage B and Stage C have in common.

    Args:
        latent_channels: channels of the latent, in and out.
        patch_size: pixels of the latent that are folded into channels before the first level.
        timestep_channels: size of a timestep's sinusoidal embedding.
        timestep_conditions: names of the extra conditions that are embedded like timesteps.
        condition_channels: width of the conditions' tokens that attention reads.
        condition_tokens: tokens made from one pooled text or image embedding.
        kernel_size: of the depthwise convolutions.
        self_attention: whether attention reads the image in addition to the tokens.
        levels: from the finest resolution to the coarsest.
        process: the diffusion process; by default that of the released networks.
    """

    latent_channels: int
    patch_size: int
    timestep_channels: int = 64
    timestep_conditions: tuple[str, ...]
    condition_channels: int
    condition_tokens: int = 4
    kernel_size: int = 3
    self_attention: bool = True
    levels: tuple[Level, ...]
    process: Process = Process()

    @property
    def attention_blocks(self) -> int:
        """How many there are, on the way down and up together."""
        return 2 * sum(level.depth * level.pattern.count("A") for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        if data["process"] == Process().to_dict():
            del data["process"]  # as files say it that were written before there was another
        return data

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        if name == "levels":
            return tuple(level if isinstance(level, Level) else Level(**level) for level in value)
        if name == "process":
            return value if isinstance(value, Process) else Process.from_dict(value)
        return super()._read(name, value)


def reference_levels(
    c_hidden: Sequence[int],
    nhead: Sequence[int],
    blocks: Sequence[Sequence[int]],
    block_repeat: Sequence[Sequence[int]],
    level_config: Sequence[str],
) -> tuple[Level, ...]:
    """The reference's parallel lists (its up lists run from the coarsest level to the finest) as one list of levels.

    Raises:
        ValueError: lists of unequal length, or different depths in the down path and the up path.
    """
    count = len(c_hidden)
    down_depths, up_depths = list(blocks[0]), list(reversed(blocks[1]))
    down_repeats, up_repeats = list(block_repeat[0]), list(reversed(block_repeat[1]))
    columns = (list(nhead), down_depths, up_depths, down_repeats, up_repeats, list(level_config))
    if any(len(column) != count for column in columns):
        raise ValueError(f"c_hidden names {count} levels, another list has {[len(c) for c in columns]}")
    if down_depths != up_depths:
        raise ValueError(f"levels with other depths down {down_depths} than up {up_depths} are not known")
    return tuple(
        Level(
            width=c_hidden[i],
            heads=nhead[i] if "A" in level_config[i] else 0,
            depth=down_depths[i],
            pattern=level_config[i],
            down_repeats=down_repeats[i],
            up_repeats=up_repeats[i],
        )
        for i in range(count)
    )
