"""Learned tokens: their vectors, the ids of these, and a tokenizer for prompts with learned tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleCheckpoint, printable, shown
from .lora import Lora, Token

MAX_TEXT = 100
MAX_PATTERN = 100
"""Characters. Patterns come from files: those that could make a search of the vocabulary endless are refused."""
MAX_PATTERNS = 50
"""Tokens of a file that begin as a pattern. For each the whole vocabulary is searched, in up to a tenth of a second."""
MAX_INITIALIZER = 1000
"""Characters. The vectors of all tokens of the text are taken, 5 kB for each."""
NAMELESS = "it has a learned token without a name: say how prompts are to write it"
_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Encoding:
    """What the tokenizer's `encode` returns, as far as it is used here."""

    ids: list[int]


class LearnedTokenizer:
    """A tokenizer of learned tokens in addition to those of `base`, which is not changed.

    A learned token is found in any case and at any place in a prompt; one that begins or ends with a letter or digit is
    not found inside a longer word.

    Args:
        base: with `encode(text).ids`.
        tokens: how prompts write a token -> the ids that stand for it.
    """

    def __init__(self, base: Any, tokens: Mapping[str, Sequence[int]]) -> None:
        self.base = base
        # The longest first, so that [a][b] is not read as [a].
        texts = sorted(tokens, key=len, reverse=True)
        self._ids = [list(tokens[text]) for text in texts]
        self._tokens = re.compile("|".join(f"({_bounded(text)})" for text in texts), re.IGNORECASE)

    def encode(self, text: str) -> Encoding:
        ids: list[int] = []
        end = 0
        for found in self._tokens.finditer(text):
            # By its number: some letters have more than two cases, such as the Greek s, and no lower() makes them one.
            ids += [*self.base.encode(text[end : found.start()]).ids, *self._ids[(found.lastindex or 1) - 1]]
            end = found.end()
        return Encoding([*ids, *self.base.encode(text[end:]).ids])


def _bounded(text: str) -> str:
    before = r"(?<!\w)" if text[0].isalnum() else ""
    after = r"(?!\w)" if text[-1].isalnum() else ""
    return f"{before}{re.escape(text)}{after}"


@dataclass(frozen=True)
class TokenTable:
    """Vectors of learned tokens, and the ids that stand for them, which follow those of a text encoder's own tokens.

    first: id of the first vector.
    ids: how prompts write a token -> the ids of its vectors.
    vectors: [n, width]; row i has the id first + i.
    """

    first: int
    ids: Mapping[str, range]
    vectors: Tensor

    @classmethod
    def build(cls, vectors: Mapping[str, Tensor], first: int) -> TokenTable:
        """Number the vectors [n, width] of each token from `first` on; at least one token."""
        ids: dict[str, range] = {}
        end = first
        for text, rows in vectors.items():
            ids[text] = range(end, end + len(rows))
            end += len(rows)
        return cls(first, ids, torch.cat(list(vectors.values())))

    def tokens(self) -> tuple[Token, ...]:
        """The tokens, with copies of their vectors."""
        rows = ((text, slice(ids.start - self.first, ids.stop - self.first)) for text, ids in self.ids.items())
        return tuple(Token(text, self.vectors[place].clone()) for text, place in rows)


def token_table(loras: Sequence[Lora], base: Tensor, tokenizer: Any, first: int) -> TokenTable:
    """The tokens of LoRAs, at least one, with absolute vectors in float32.

    Args:
        base: the text encoder's token table [tokens, width] without any LoRA.
        tokenizer: of the text encoder.
        first: id of the first vector.

    Raises:
        IncompatibleCheckpoint: as `unique_tokens` and `vectors_of`.
    """
    tokens = unique_tokens(loras, tokenizer)
    return TokenTable.build({token.text: vectors_of(token, base, tokenizer, path) for token, path in tokens}, first)


def parse_token_names(lines: Iterable[str]) -> list[tuple[str, str | None]]:
    """Texts and initializers of tokens, one token a line: `[fernando] = ^dog</w>`, or the text alone."""
    pairs = (line.partition("=") for line in lines if line.strip())
    return [(text.strip(), initializer.strip() or None) for text, _, initializer in pairs]


def vectors_of(token: Token, table: Tensor, tokenizer: Any, path: str | None = None) -> Tensor:
    """A token's absolute vectors [n, width], float32.

    Args:
        table: the text encoder's token table [tokens, width] without any LoRA.
        tokenizer: of the text encoder.
        path: of the token's file, for messages.

    Raises:
        IncompatibleCheckpoint: another width, or an initializer that matches no token.
    """
    if token.vectors.shape[1] != table.shape[1]:
        made, here = token.vectors.shape[1], table.shape[1]
        raise IncompatibleCheckpoint(f"the token {token.text} is {made} wide, the text encoder {here}", path)
    vectors = token.vectors.to(table.device, torch.float32)
    if token.initializer is None:
        return vectors
    ids = initializer_ids(token.initializer, tokenizer)
    if not ids:
        text = f"the initializer {token.initializer!r} of the token {token.text} matches no token"
        raise IncompatibleCheckpoint(text, path)
    return vectors + table[ids].float().mean(0)


def is_pattern(initializer: str) -> bool:
    """Whether an initializer is a pattern of the released trainer, not a text."""
    return re.search(r"[\^$|*]|</w>", initializer) is not None


def initializer_ids(initializer: str, tokenizer: Any) -> list[int]:
    """The ids of a text's tokens, or of the vocabulary's tokens that match a pattern of the released trainer.

    A pattern is a regular expression with `^`, `$`, `|`, `*` or `</w>` in it; the vocabulary marks the end of a word
    with `</w>`.

    Raises:
        IncompatibleCheckpoint: not a valid pattern, or one that is too long or too complex.
    """
    if printable(initializer) != initializer:
        raise IncompatibleCheckpoint(f"the initializer {shown(initializer)} has half a character")
    if len(initializer) > MAX_INITIALIZER:
        raise IncompatibleCheckpoint(f"the initializer {shown(initializer)} has more than {MAX_INITIALIZER} characters")
    if not is_pattern(initializer):
        return list(tokenizer.encode(initializer).ids)
    complex_ = len(re.findall(r"[*+?]", initializer)) > 2 or re.search(r"[(){}\\]", initializer)
    if len(initializer) > MAX_PATTERN or complex_:
        raise IncompatibleCheckpoint(f"the pattern {initializer[:MAX_PATTERN]!r} is too long or too complex")
    try:
        pattern = re.compile(initializer)
    except re.error as error:
        raise IncompatibleCheckpoint(f"the pattern {initializer!r} is not valid: {error}") from error
    return sorted(index for entry, index in tokenizer.get_vocab().items() if pattern.search(entry))


def absolute(lora: Lora, table: Tensor, tokenizer: Any) -> Lora:
    """A copy whose tokens have absolute vectors and no initializer. Arguments as of `vectors_of`."""
    tokens = (replace(t, vectors=vectors_of(t, table, tokenizer), initializer=None) for t in lora.tokens)
    return replace(lora, tokens=tuple(tokens))


def unique_tokens(loras: Sequence[Lora], tokenizer: Any) -> list[tuple[Token, str | None]]:
    """The tokens that these LoRAs define together, each text once, with the path of the LoRA that it is from.

    Raises:
        IncompatibleCheckpoint: as `check_token`, or two different tokens of the same text.
    """
    found: dict[str, tuple[Token, str | None]] = {}
    for lora in loras:
        for token in lora.tokens:
            check_token(token.text, tokenizer, lora.path)
            other, path = found.setdefault(token.text.lower(), (token, lora.path))
            if other.initializer != token.initializer or not _equal(other.vectors, token.vectors):
                files = " and ".join(str(name or "another LoRA") for name in (path, lora.path))
                raise IncompatibleCheckpoint(f"{files} both define the token {token.text}: rename one")
    return list(found.values())


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one.float().cpu(), other.float().cpu()))


def check_token(text: str, tokenizer: Any, path: str | None = None) -> None:
    """Raises IncompatibleCheckpoint for a text that a learned token cannot have in prompts.

    Args:
        text: how prompts are to write the token.
        path: of the token's file, for messages.
    """
    if not text:
        raise IncompatibleCheckpoint(NAMELESS, path)
    if len(text) > MAX_TEXT or not text.isprintable() or re.search(r"[\s():,|]", text):
        problem = f"{text[:MAX_TEXT]!r} cannot be a token in prompts: rename it, without spaces and ( ) : , |"
        raise IncompatibleCheckpoint(problem, path)
    if _LETTERS.fullmatch(text) and len(tokenizer.encode(text).ids) == 1:
        problem = f"its token {text} is an ordinary word, which prompts could no longer use: rename it, to [{text}] say"
        raise IncompatibleCheckpoint(problem, path)
