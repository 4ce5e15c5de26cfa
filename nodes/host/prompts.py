"""Prompts as CONDITIONINGs that know their words, which edits and maps of words compare."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...cascade.conditioning import TextEmbedding, check_prompt
from ...cascade.conditioning.vocabulary import END_ID
from ...cascade.editing import PromptTokens
from ...cascade.errors import CascadeError, MissingPart

PROMPT = "cascade_prompt"
"""Where a CONDITIONING's extras have a `Prompt`."""
REGIONS = "cascade_regions"
"""Where they have the prompts of parts of the image, and Stage C's conditions what controls who sees these and image
prompts."""


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt, and how words are split into tokens of the same kind."""

    tokens: PromptTokens
    tokenize: Callable[[str], PromptTokens]

    def find(self, words: str) -> list[int]:
        """The places of words among the text tokens. Raises InvalidSettings, see `PromptTokens.find`."""
        return self.tokens.find(self.tokenize(words))


def encoded(clip: Any, text: str) -> Any:
    """The CONDITIONING of a text. Raises MissingPart without a CLIP, InvalidSettings for half of a character."""
    if clip is None:
        raise MissingPart("There is no text encoder: the checkpoint that was loaded has none.")
    check_prompt(text)
    tokens = clip.tokenize(text)
    made = clip.encode_from_tokens_scheduled(tokens)
    if "g" not in tokens:
        return made
    tokenizer = clip.tokenizer

    def tokenize(text: str) -> PromptTokens:
        return _tokens(text, tokenizer.tokenize_with_weights(text)["g"])

    prompt = Prompt(_tokens(text, tokens["g"]), tokenize)
    return [[hidden, {**extras, PROMPT: prompt}] for hidden, extras in made]


def _tokens(text: str, chunks: list[list[Any]]) -> PromptTokens:
    """The tokens of the host's chunks, without start and end tokens; all but the last chunk have their padding."""
    *full, last = ([_id(token) for token, *_ in chunk] for chunk in chunks)
    content = last[1 : last.index(END_ID)] if END_ID in last else last[1:]
    return PromptTokens(text, tuple(token for chunk in full for token in chunk[1:-1]) + tuple(content))


def _id(token: Any) -> int:
    """A token's id; a vector of an embedding has one of its own, below 0."""
    return -1 - zlib.crc32(token.detach().float().cpu().numpy().tobytes()) if isinstance(token, Tensor) else int(token)


def single(conditioning: Any, name: str) -> tuple[Prompt, TextEmbedding, dict[str, Any]]:
    """The words, the embedding and the extras of a CONDITIONING that is one prompt. name: of the node's input.

    Raises CascadeError for another one.
    """
    [entry, *more] = conditioning
    hidden, extras = entry
    prompt = extras.get(PROMPT)
    if more or prompt is None or REGIONS in extras or len(hidden) != 1:
        raise CascadeError(
            f"{name} must be one prompt whose words are known: connect Text Encode (Stable Cascade), not ComfyUI's own "
            "CLIP Text Encode, prompts that were combined, or one with regions."
        )
    return prompt, TextEmbedding(hidden, extras["pooled_output"][:, None]), extras
