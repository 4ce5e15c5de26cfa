"""Prompts to text embeddings, with CLIP's text model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InvalidSettings
from .vocabulary import END_ID, START_ID, tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LENGTH = 77
"""Tokens that the text model reads at once, including the start and the end token."""


def check_prompt(prompt: str) -> None:
    """Raises InvalidSettings for half of a surrogate pair, which tokenizers answer with a TypeError.

    JSON can hold one: a program that cuts a text inside an emoji leaves it behind.
    """
    halves = [number for number, character in enumerate(prompt) if "\ud800" <= character <= "\udfff"]
    if halves:
        raise InvalidSettings(
            f"The prompt has half of a character ({prompt[halves[0]]!r}) at place {halves[0] + 1}: delete it there, or "
            "write the whole character."
        )


@dataclass(frozen=True)
class TextEmbedding:
    """The text model's embeddings of a batch of prompts.

    hidden: [B, n, c], the last hidden state before the final layer norm; n is 77 for each chunk of the prompt.
    pooled: [B, 1, c'], the projected text embedding at the end token.
    """

    hidden: Tensor
    pooled: Tensor

    @classmethod
    def join(cls, embeddings: Sequence[TextEmbedding]) -> TextEmbedding:
        """Embeddings of one length as one batch."""
        return cls(torch.cat([e.hidden for e in embeddings]), torch.cat([e.pooled for e in embeddings]))

    def expand(self, batch: int) -> TextEmbedding:
        """One prompt's embedding for a whole batch (a view, no copy)."""
        return TextEmbedding(self.hidden.expand(batch, -1, -1), self.pooled.expand(batch, -1, -1))


class TextEncoder:
    """Wraps a `transformers.CLIPTextModelWithProjection`; the model stays where and in the dtype it is.

    A prompt of more than 75 tokens is split into chunks of 75, each with its own start and end token; their hidden
    states are concatenated along n, and the pooled embedding is the first chunk's, as in ComfyUI.

    Without `tokenizer_` it uses the model's `learned_tokenizer` with the learned tokens of its LoRAs, if there is one
    (`adapters.attach` sets it), else CLIP's own.
    """

    def __init__(self, model: nn.Module, tokenizer_: Tokenizer | None = None) -> None:
        self.model = model
        self.tokenizer: Any = tokenizer_ or getattr(model, "learned_tokenizer", None) or tokenizer()

    def chunks(self, prompt: str) -> list[list[int]]:
        """A prompt's token ids, 75 to a chunk, without start and end tokens; the empty prompt is one empty chunk.

        Raises InvalidSettings for half a character.
        """
        check_prompt(prompt)
        ids = self.tokenizer.encode(prompt).ids
        size = LENGTH - 2
        return [ids[i : i + size] for i in range(0, max(len(ids), 1), size)]

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both [B, chunks, 77], padded with the end token; the mask excludes the padding.

        Prompts of fewer chunks than the longest get the chunk of the empty prompt. This changes Stage C's
        result (text and image share one softmax): to avoid it, encode only prompts of the same number of chunks
        together.
        """
        split = [self.chunks(prompt) for prompt in prompts]
        longest = max(len(chunks) for chunks in split)
        rows = [chunk for chunks in split for chunk in chunks + [[]] * (longest - len(chunks))]
        ids = torch.full((len(rows), LENGTH), END_ID)
        mask = torch.zeros(len(rows), LENGTH, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row) + 1] = torch.tensor([START_ID, *row])
            mask[i, : len(row) + 2] = 1
        return ids.unflatten(0, (len(split), longest)), mask.unflatten(0, (len(split), longest))

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Embeddings of the prompts, on the model's device and in its dtype; gradients flow."""
        ids, mask = self.tokenize(prompts)
        return self.embed(ids, mask)

    def embed(self, ids: Tensor, mask: Tensor) -> TextEmbedding:
        """Embeddings of the ids and mask that `tokenize` gives, both [B, chunks, 77]."""
        batch, chunks, length = ids.shape
        device = next(self.model.parameters()).device
        output: Any = self.model(
            input_ids=ids.flatten(0, 1).to(device),
            attention_mask=mask.flatten(0, 1).to(device),
            output_hidden_states=True,
        )
        hidden = output.hidden_states[-1].reshape(batch, chunks * length, -1)
        pooled = output.text_embeds.unflatten(0, (batch, chunks))[:, :1]
        return TextEmbedding(hidden, pooled)
