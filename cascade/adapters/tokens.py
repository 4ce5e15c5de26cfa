"""Learned tokens: their vectors, and prompts that use their words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleCheckpoint
from .lora import Lora, Token

MAX_WORD = 100
MAX_PATTERN = 100
"""Characters. Patterns come from files: what could make a search of the vocabulary endless is refused."""
_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Encoding:
    """What the tokenizer's `encode` returns, as far as it is used here."""

    ids: list[int]


class LearnedTokenizer:
    """A tokenizer that knows learned words beside those of `base`, which it leaves as it is.

    A word is found as the vocabulary's own are, whatever its case and wherever it stands; one that begins or ends with
    a letter or digit is not found inside a longer word.
    """

    def __init__(self, base: Any, words: Mapping[str, Sequence[int]]) -> None:
        self.base = base
        self._ids = {word.lower(): list(ids) for word, ids in words.items()}
        # The longest first: of [a] and [a][b] the latter is meant where it stands.
        choices = "|".join(_bounded(word) for word in sorted(words, key=len, reverse=True))
        self._words = re.compile(f"({choices})", re.IGNORECASE)

    def encode(self, text: str) -> Encoding:
        ids: list[int] = []
        for place, piece in enumerate(self._words.split(text)):
            ids += self._ids[piece.lower()] if place % 2 else self.base.encode(piece).ids
        return Encoding(ids)


def _bounded(word: str) -> str:
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return f"{before}{re.escape(word)}{after}"


def parse_named(lines: Iterable[str]) -> list[tuple[str, str | None]]:
    """Words and what they start from, one a line: `[fernando] = ^dog</w>`, or the word alone."""
    pairs = (line.partition("=") for line in lines if line.strip())
    return [(word.strip(), start.strip() or None) for word, _, start in pairs]


def vectors_of(token: Token, table: Tensor, tokenizer: Any, path: str | None = None) -> Tensor:
    """A token's vectors [n, width], float32.

    Args:
        table: the text encoder's token table [tokens, width] without any LoRA.
        tokenizer: of the text encoder.
        path: of the token's file, for messages.

    Raises:
        IncompatibleCheckpoint: another width, or a start that names no token.
    """
    if token.vectors.shape[1] != table.shape[1]:
        made, here = token.vectors.shape[1], table.shape[1]
        raise IncompatibleCheckpoint(f"the token {token.word} is {made} wide, the text encoder {here}", path)
    vectors = token.vectors.to(table.device, torch.float32)
    if token.start is None:
        return vectors
    ids = start_ids(token.start, tokenizer)
    if not ids:
        raise IncompatibleCheckpoint(f"the token {token.word} starts from {token.start!r}, which names no token", path)
    return vectors + table[ids].float().mean(0)


def start_ids(start: str, tokenizer: Any) -> list[int]:
    """The tokens of a text, or those of the vocabulary that fit a pattern of the released trainer.

    A pattern is what has `^`, `$`, `|`, `*` or `</w>` in it; the vocabulary marks the end of a word with `</w>`.

    Raises:
        IncompatibleCheckpoint: a pattern that is not understood.
    """
    if not re.search(r"[\^$|*]|</w>", start):
        return list(tokenizer.encode(start).ids)
    if len(start) > MAX_PATTERN or len(re.findall(r"[*+?]", start)) > 2 or re.search(r"[(){}\\]", start):
        raise IncompatibleCheckpoint(f"the pattern {start[:MAX_PATTERN]!r} is longer or less plain than is read here")
    try:
        pattern = re.compile(start)
    except re.error as error:
        raise IncompatibleCheckpoint(f"the pattern {start!r} is none: {error}") from error
    return sorted(index for word, index in tokenizer.get_vocab().items() if pattern.search(word))


def absolute(lora: Lora, table: Tensor, tokenizer: Any) -> Lora:
    """The same with every token's vectors whole: no start is needed any more. Arguments as in `vectors_of`."""
    tokens = (replace(t, vectors=vectors_of(t, table, tokenizer), start=None) for t in lora.tokens)
    return replace(lora, tokens=tuple(tokens))


def tokens_of(loras: Sequence[Lora], tokenizer: Any) -> list[Token]:
    """The tokens that these LoRAs define together, each word once.

    Raises:
        IncompatibleCheckpoint: a word that is missing, that prompts cannot hold or that is an ordinary one, or
            two tokens of one word that differ.
    """
    found: dict[str, tuple[Token, str | None]] = {}
    for lora in loras:
        for token in lora.tokens:
            check_word(token.word, tokenizer, lora.path)
            other, path = found.setdefault(token.word.lower(), (token, lora.path))
            if other.start != token.start or not _equal(other.vectors, token.vectors):
                files = " and ".join(str(name or "another LoRA") for name in (path, lora.path))
                raise IncompatibleCheckpoint(f"{files} both define the token {token.word}: rename one")
    return [token for token, _ in found.values()]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one.float().cpu(), other.float().cpu()))


def check_word(word: str, tokenizer: Any, path: str | None = None) -> None:
    """Raises IncompatibleCheckpoint for a word that cannot stand for a learned token."""
    if not word:
        raise IncompatibleCheckpoint("it has a learned token without a word: say which word it is to have", path)
    if len(word) > MAX_WORD or not word.isprintable() or re.search(r"[\s():,|]", word):
        raise IncompatibleCheckpoint(f"{word[:MAX_WORD]!r} cannot be a word of a prompt: rename the token", path)
    if _LETTERS.fullmatch(word) and len(tokenizer.encode(word).ids) == 1:
        text = f"its token {word} is an ordinary word, which every prompt would lose: rename it, to [{word}] say"
        raise IncompatibleCheckpoint(text, path)
