"""Learned tokens in prompts: a tokenizer that returns their vectors where the host's returns ids."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from ...cascade.adapters import LearnedTokenizer, Lora
from ...cascade.adapters.tokens import Encoding, token_table
from ...cascade.conditioning import tokenizer

FIRST = 1 << 20
"""Ids from here on are those of learned vectors; no vocabulary is that large."""


@lru_cache(maxsize=1)
def base_tokenizer() -> Any:
    """The library's CLIP tokenizer."""
    return tokenizer()


class _InnerTokenizer:
    """Replaces the transformers tokenizer inside the host's: gives learned tokens ids in addition to its own."""

    def __init__(self, base: Any, tokens: Any) -> None:
        self._base = base
        self._learned = LearnedTokenizer(self, tokens)

    def encode(self, text: str) -> Encoding:
        """The ids without start and end token: `LearnedTokenizer` encodes pieces of a prompt."""
        return Encoding(self._base(text)["input_ids"][1:-1])

    def __call__(self, text: str, **keywords: Any) -> dict[str, Any]:
        start, *_, end = self._base("", **keywords)["input_ids"]
        ids = [start, *self._learned.encode(text).ids, end]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


class HostTokenizer:
    """The host's tokenizer of one CLIP text encoder, with learned tokens.

    tokens: the learned tokens, as prompts write them.
    """

    def __init__(self, base: Any, loras: Sequence[Lora], table: Tensor) -> None:
        self.base, self.loras = base, tuple(loras)
        learned = token_table(self.loras, table, base_tokenizer(), FIRST)
        self.tokens, self.vectors = tuple(learned.ids), learned.vectors.cpu()
        self._inner = copy.copy(base)
        self._inner.tokenizer = _InnerTokenizer(base.tokenizer, learned.ids)

    @staticmethod
    def on(tokenizers: Any, lora: Lora, table: Tensor) -> Any:
        """A copy of a CLIP's tokenizers with the tokens of one more LoRA. Raises IncompatibleCheckpoint."""
        clip_g = tokenizers.clip_g
        base, loras = (clip_g.base, clip_g.loras) if isinstance(clip_g, HostTokenizer) else (clip_g, ())
        changed = copy.copy(tokenizers)
        changed.clip_g = HostTokenizer(base, (*loras, lora), table)
        return changed

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **keywords: Any) -> list[list[Any]]:
        """As the host's, with a vector for each id of a learned token."""
        batches = self._inner.tokenize_with_weights(text, return_word_ids, **keywords)
        return [[(self._vector(token), *rest) for token, *rest in batch] for batch in batches]

    def _vector(self, token: Any) -> Any:
        return self.vectors[token - FIRST] if isinstance(token, int) and token >= FIRST else token

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)
