"""The seam through which attention is controlled, by both executors of a plan.

An executor asks a plan's controller, before each call of Stage C, what the attention blocks do in that call. What the
controller gives is called by each block with what the block is about to compute (`models.AttentionCall`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..conditioning import StageCInputs
from ..models import AroundAttention, StageC


@dataclass(frozen=True)
class Tokens:
    """How many tokens of each kind the conditions have; in a block they follow the image's own, in this order.

    text: of all chunks, usually 77 each. pooled, images: of the pooled text embeddings and of the image embeddings,
    `each` for one.
    """

    text: int
    pooled: int
    images: int
    each: int = 4

    @classmethod
    def of(cls, clip_text: Tensor, clip_text_pooled: Tensor, clip_img: Tensor, each: int) -> Tokens:
        """From Stage C's conditions, named as in `StageC.forward`. each: `condition_tokens` of its config."""
        pooled, images = (1 if x.dim() == 2 else x.shape[1] for x in (clip_text_pooled, clip_img))
        return cls(clip_text.shape[1], each * pooled, each * images, each)

    @property
    def count(self) -> int:
        """Of all kinds."""
        return self.text + self.pooled + self.images

    def text_among(self, keys: int) -> slice:
        """Where the text tokens are among so many keys of a block."""
        first = keys - self.count
        return slice(first, first + self.text)


@dataclass(frozen=True)
class NetworkCall:
    """One call of Stage C in a step of a run.

    percent: the part of the run that is done, 0 at its start, 1 at its end; it stands for the noise level.
    with_prompt: for each equal part of the batch, whether its conditions are those with the prompt. A part has the
        images of the run, in their order.
    tokens: of the conditions.
    blocks: attention blocks of the network.
    """

    percent: float
    with_prompt: tuple[bool, ...]
    tokens: Tokens
    blocks: int = 1

    def rows(self, batch: int) -> slice | None:
        """The rows of the images with the prompt in a batch of this size; None where the call is without it."""
        if True not in self.with_prompt:
            return None
        images, place = batch // len(self.with_prompt), self.with_prompt.index(True)
        return slice(place * images, (place + 1) * images)


class AttentionController(Protocol):
    """Controls attention in one run."""

    def inputs(self, cond: StageCInputs) -> StageCInputs:
        """The conditions that the run must have, from those of its prompts."""
        return cond

    def check_network(self, net: StageC) -> None:
        """Raises IncompatibleCheckpoint for a Stage C that it does not fit."""

    def around(self, call: NetworkCall) -> AroundAttention | None:
        """What the attention blocks do in this call; None: nothing but their own attention."""
        ...
