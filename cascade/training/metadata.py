"""What is said about an image beside its pixels: captions, and the filters that choose images by it."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, StrictBool

from ..errors import shown
from .config import Amount, Settings, Share, Whole

SOURCE, DEPTH = 500, 20
"""Characters of a filter's expression, and how deep it may be nested."""
SEPARATOR = ","
"""Between the tags of a caption."""

_PLACE = re.compile(r"\{([\w.]+)\}")
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_CALCULATE: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_CALLS: Mapping[str, Callable[..., Any]] = {"len": len, "abs": abs, "min": min, "max": max, "float": float, "int": int}


def find(metadata: Mapping[str, Any], path: str) -> Any:
    """The value at `a.b`; a text on the way is read as JSON. Raises LookupError, ValueError, TypeError."""
    value: Any = metadata
    for key in path.split("."):
        if isinstance(value, str):
            value = json.loads(value)
        value = value[key]
    return value


@dataclass(frozen=True)
class Filter:
    """A comparison of values of an image's metadata, read from text and never run as code.

    keys: of the metadata, one for each name. names: how the expression calls their values.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    body: ast.expr

    def __call__(self, metadata: Mapping[str, Any]) -> bool:
        """Whether the image stays; false where a key is missing or cannot be compared, as in the released code."""
        try:
            values = dict(zip(self.names, (find(metadata, key) for key in self.keys), strict=True))
            return bool(_evaluate(self.body, values))
        except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError, RecursionError):
            return False


def parse_filter(keys: str | Sequence[str], text: str) -> Filter:
    """`parse_filter("width", ">= 768")`, or the released form "lambda w: w >= 768" of one or several values.

    Raises ValueError: anything but comparisons, `and`, `or`, `not`, + - * / % and a few functions of values.
    """
    where = f"the filter {shown(text)}"
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    if len(text) > SOURCE:
        raise ValueError(f"{where} has more than {SOURCE} characters")
    source = text.strip()
    if source.startswith(("<", ">", "=", "!", "in ", "not in ")):
        source = f"lambda x: x {source}"
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where} cannot be read: write a comparison such as '>= 768'") from error
    if not isinstance(tree, ast.Lambda):
        raise ValueError(f"{where} is no comparison: write '>= 768' or 'lambda w: w >= 768'")
    names = tuple(argument.arg for argument in tree.args.args)
    if len(names) != len(keys) or tree.args.defaults or tree.args.vararg or tree.args.kwonlyargs or tree.args.kwarg:
        raise ValueError(f"{where} takes {len(names)} values, the metadata has {len(keys)} for it: {', '.join(keys)}")
    _check(tree.body, set(names), where)
    return Filter(keys, names, tree.body)


def _check(node: ast.AST, names: set[str], where: str, depth: int = 0) -> None:
    known = {
        ast.BoolOp: True,
        ast.Compare: isinstance(node, ast.Compare) and all(type(each) in _COMPARE for each in node.ops),
        ast.BinOp: isinstance(node, ast.BinOp) and type(node.op) in _CALCULATE,
        ast.UnaryOp: isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub),
        ast.Name: isinstance(node, ast.Name) and node.id in names,
        ast.Constant: isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None),
        ast.Tuple: True,
        ast.List: True,
        ast.Call: isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _CALLS
        and not node.keywords,
    }
    if not known.get(type(node), False) or depth > DEPTH:  # type: ignore[arg-type]
        part = ast.unparse(node) if depth <= DEPTH else "..."
        raise ValueError(f"{where}: {shown(part)} is not possible there; only comparisons of values are read")
    children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    for child in children:
        if isinstance(child, ast.expr):
            _check(child, names, where, depth + 1)


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return values[node.id]
        case ast.Tuple() | ast.List():
            return [_evaluate(each, values) for each in node.elts]
        case ast.UnaryOp():
            value = _evaluate(node.operand, values)
            return not value if isinstance(node.op, ast.Not) else -value
        case ast.BoolOp():
            together = all if isinstance(node.op, ast.And) else any
            return together(_evaluate(each, values) for each in node.values)
        case ast.BinOp():
            a, b = _evaluate(node.left, values), _evaluate(node.right, values)
            if not (isinstance(a, int | float) and isinstance(b, int | float)):
                raise TypeError("only numbers are calculated with")  # a text times a number may be of any size
            return _CALCULATE[type(node.op)](a, b)
        case ast.Call(func=ast.Name(id=name)):
            return _CALLS[name](*(_evaluate(each, values) for each in node.args))
        case ast.Compare():
            left = _evaluate(node.left, values)
            for each, right in zip(node.ops, (_evaluate(value, values) for value in node.comparators), strict=True):
                if not _COMPARE[type(each)](left, right):
                    return False
                left = right
            return True
    raise TypeError(type(node).__name__)


def _readable(value: tuple[str | tuple[str, ...], str]) -> tuple[str | tuple[str, ...], str]:
    parse_filter(*value)
    return value


FilterSettings = Annotated[tuple[str | tuple[str, ...], str], AfterValidator(_readable)]
"""[key, expression] or [[key, key], expression]."""


def _a_key(key: str) -> str:
    if key != "txt" and not key.startswith("json."):
        raise ValueError(f"{shown(key)} names no caption: write txt (the text beside the image) or json.KEY")
    return key


CaptionKey = Annotated[str, AfterValidator(_a_key)]


class CaptionSettings(Settings):
    """Where an image's text comes from, and what is random in it each time that the image is seen.

    `keys` are places with weights: `txt`, the text beside the image, and `json.KEY`, a value of its metadata. One of
    those that an image has is taken by chance. `template` may have {caption} and keys of the metadata.

    Tags are the parts between commas: with `shuffle_tags` all behind the first `keep_tags` change places, and each of
    them is left out with probability `drop_tags`.
    """

    keys: Annotated[Mapping[CaptionKey, Amount], Field(min_length=1)] = {"txt": 1.0}
    template: str = "{caption}"
    shuffle_tags: StrictBool = False
    drop_tags: Share = 0.0
    keep_tags: Annotated[Whole, Field(ge=0)] = 1

    @property
    def random(self) -> bool:
        """Whether one image can have several texts."""
        return len(self.keys) > 1 or self.shuffle_tags or self.drop_tags > 0

    def texts(self, text: str | None, metadata: Mapping[str, Any]) -> list[str | None]:
        """A text for each of the keys; None for those that this image does not have."""
        return [self._text(key, text, metadata) for key in self.keys]

    def _text(self, key: str, text: str | None, metadata: Mapping[str, Any]) -> str | None:
        if key != "txt":
            try:
                text = _one_line(str(find(metadata, key.removeprefix("json."))))
            except (LookupError, ValueError, TypeError, RecursionError):
                return None
        if not text or self.template == "{caption}":
            return text or None

        def value(match: re.Match[str]) -> str:
            if match[1] == "caption":
                return text
            try:
                return _one_line(str(find(metadata, match[1])))
            except (LookupError, ValueError, TypeError, RecursionError):
                return ""

        return _PLACE.sub(value, self.template)

    def choose(self, texts: Sequence[str | None], random: np.random.Generator) -> str:
        """One of an image's texts, as it is seen this time. Without anything random nothing is drawn."""
        weights = [w for w, text in zip(self.keys.values(), texts, strict=True) if text is not None]
        present = [text for text in texts if text is not None]
        if len(present) > 1 and sum(weights) > 0:
            chosen = present[int(random.choice(len(present), p=np.array(weights) / sum(weights)))]
        else:
            chosen = present[0]
        if not self.shuffle_tags and self.drop_tags == 0:
            return chosen
        tags = [tag.strip() for tag in chosen.split(SEPARATOR)]
        first, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        if self.shuffle_tags:
            rest = [rest[place] for place in random.permutation(len(rest))]
        rest = [tag for tag, kept in zip(rest, random.random(len(rest)) >= self.drop_tags, strict=True) if kept]
        return f"{SEPARATOR} ".join(first + rest)


def _one_line(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a character
    return " ".join(text.replace("\0", " ").split())
