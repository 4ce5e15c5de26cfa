"""The dictionary behind `SCHEDULES`, `SAMPLERS` and the others: a dict with a readable error for an unknown name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class Registry(dict[str, Callable[..., T]]):
    """Name -> factory. `kind` is what the entries are, for the error message."""

    def __init__(self, kind: str, factories: Mapping[str, Callable[..., T]]) -> None:
        super().__init__(factories)
        self.kind = kind

    def __missing__(self, name: object) -> NoReturn:
        raise KeyError(f"unknown {self.kind} {name!r}; known are: {', '.join(self)}")

    def resolve(self, choice: str | T, **arguments: Any) -> T:
        """A name is built from its factory; anything else is returned as it is."""
        return self[choice](**arguments) if isinstance(choice, str) else choice
