"""Learned words in prompts: a tokenizer that gives their vectors where the host's gives numbers of tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from ...cascade.adapters import LearnedTokenizer, Lora, vectors_of
from ...cascade.adapters.tokens import tokens_of
from ...cascade.conditioning import tokenizer

FIRST = 1 << 20
"""Numbers from here on stand for vectors; no vocabulary goes that far."""


@lru_cache(maxsize=1)
def base_tokenizer() -> Any:
    """CLIP's own, in the library's form."""
    return tokenizer()


class Finder:
    """In the place of the host's word tokenizer: knows learned words beside its own."""

    def __init__(self, base: Any, words: dict[str, range]) -> None:
        self._base = base
        self._learned = LearnedTokenizer(self, words)

    def encode(self, text: str) -> Any:
        """Without start and end token, as `LearnedTokenizer` asks for what lies between its words."""
        return _Encoding(self._base(text)["input_ids"][1:-1])

    def __call__(self, text: str, **keywords: Any) -> dict[str, Any]:
        start, *_, end = self._base("", **keywords)["input_ids"]
        ids = [start, *self._learned.encode(text).ids, end]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


class _Encoding:
    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)


class LearnedWords:
    """Around the host's tokenizer of one CLIP tower."""

    def __init__(self, base: Any, loras: Sequence[Lora], table: Tensor) -> None:
        self.base, self.loras = base, tuple(loras)
        words: dict[str, range] = {}
        self.vectors: list[Tensor] = []
        for token in tokens_of(self.loras, base_tokenizer()):
            first = FIRST + len(self.vectors)
            self.vectors += vectors_of(token, table, base_tokenizer()).cpu().unbind()
            words[token.word] = range(first, FIRST + len(self.vectors))
        self.words = tuple(words)
        self._inner = copy.copy(base)
        self._inner.tokenizer = Finder(base.tokenizer, words)

    @staticmethod
    def on(whole: Any, lora: Lora, table: Tensor) -> Any:
        """A copy of a CLIP's tokenizer that knows the words of one more LoRA. Raises IncompatibleCheckpoint."""
        for token in lora.tokens:
            vectors_of(token, table, base_tokenizer(), lora.path)
        known = whole.clip_g
        base, loras = (known.base, known.loras) if isinstance(known, LearnedWords) else (known, ())
        changed = copy.copy(whole)
        changed.clip_g = LearnedWords(base, (*loras, lora), table)
        return changed

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **keywords: Any) -> list[list[Any]]:
        """As the host's; a learned word gives its vectors."""
        batches = self._inner.tokenize_with_weights(text, return_word_ids, **keywords)
        return [[(self._vector(token), *rest) for token, *rest in batch] for batch in batches]

    def _vector(self, token: Any) -> Any:
        return self.vectors[token - FIRST] if isinstance(token, int) and token >= FIRST else token

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)
