"""Where the words of a prompt are among its tokens, and which tokens of two prompts belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from torch import Tensor

from ..conditioning.text import LENGTH, TextEncoder
from ..errors import InvalidSettings

CONTENT = LENGTH - 2
"""Tokens of a prompt in a chunk, between its start and its end token."""


@dataclass(frozen=True)
class PromptTokens:
    """A prompt and the ids of its tokens, without start and end tokens."""

    prompt: str
    ids: tuple[int, ...]

    @classmethod
    def of(cls, encoder: TextEncoder, prompt: str) -> PromptTokens:
        return cls(prompt, tuple(token for chunk in encoder.chunks(prompt) for token in chunk))

    def find(self, word: PromptTokens) -> list[int]:
        """The places of a word, or of several words that follow each other, among the text tokens; all that there are.

        Raises InvalidSettings for a word that is not in the prompt.
        """
        count = len(word.ids)
        starts = [i for i in range(len(self.ids) - count + 1) if count and self.ids[i : i + count] == word.ids]
        if not starts:
            raise InvalidSettings(
                f"{word.prompt!r} is not in the prompt {self.prompt!r}: use a word as the prompt has it"
            )
        return [place(i) for start in starts for i in range(start, start + count)]


def place(token: int) -> int:
    """Where a prompt's token is among the text tokens, which have a start and an end token in each chunk."""
    return token // CONTENT * LENGTH + 1 + token % CONTENT


@dataclass(frozen=True)
class Alignment:
    """Which text tokens of a target prompt take over what of a source prompt.

    mapping: [n, n]; row j has the shares of the source's tokens that belong to the target's token j.
    new: [n], 1 for the target's tokens that belong to none of the source's.
    removed, added: places of the source's tokens that are not in the target, and of the target's that are not in the
        source.
    """

    mapping: Tensor
    new: Tensor
    removed: tuple[int, ...]
    added: tuple[int, ...]


def align(source: PromptTokens, target: PromptTokens, length: int) -> Alignment:
    """The alignment of two prompts of `length` text tokens with start, end and padding.

    A run of tokens that is exchanged for another shares its attention evenly. Padding belongs to padding.

    Raises InvalidSettings for prompts without a common token.
    """
    mapping, new = torch.eye(length), torch.zeros(length)
    ends = [_places(each.ids) for each in (source, target)]
    for where in range(length):
        # The longer prompt ends later: its padding begins where the other has padding already.
        if where in ends[0] and where not in ends[1]:
            mapping[where] = 0
            mapping[where, place(len(source.ids)) if source.ids else where] = 1
    removed: list[int] = []
    added: list[int] = []
    steps = SequenceMatcher(None, source.ids, target.ids, autojunk=False).get_opcodes()
    if not any(kind == "equal" for kind, *_ in steps):
        raise InvalidSettings(
            f"The prompts {source.prompt!r} and {target.prompt!r} have no word in common: write the second as the "
            "first with the words changed that should change"
        )
    for kind, i, i_end, j, j_end in steps:
        old, now = [place(n) for n in range(i, i_end)], [place(n) for n in range(j, j_end)]
        for n, where in enumerate(now):
            mapping[where] = 0
            if kind == "equal":
                mapping[where, old[n]] = 1
            elif kind == "replace":
                mapping[where, old] = 1 / len(now)
            else:
                new[where] = 1
        if kind != "equal":
            removed += old
            added += now
    return Alignment(mapping, new, tuple(removed), tuple(added))


def _places(ids: Sequence[int]) -> set[int]:
    return {place(i) for i in range(len(ids))}
