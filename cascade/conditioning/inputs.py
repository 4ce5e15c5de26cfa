"""The conditions of Stage C and Stage B, with and without the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .text import TextEmbedding


@dataclass(frozen=True)
class StageCInputs:
    """Stage C's conditions: clip_text [B, n, c], clip_text_pooled [B, 1, c], clip_img [B, k, c']."""

    clip_text: Tensor
    clip_text_pooled: Tensor
    clip_img: Tensor

    @classmethod
    def of(cls, text: TextEmbedding, clip_img: Tensor) -> StageCInputs:
        return cls(text.hidden, text.pooled, clip_img)

    @classmethod
    def without_image(cls, text: TextEmbedding, channels: int) -> StageCInputs:
        """Only text: the image embedding is zeros of this many channels."""
        return cls.of(text, text.pooled.new_zeros(len(text.pooled), 1, channels))

    def unconditional(self, text: TextEmbedding) -> StageCInputs:
        """The released counterpart for guidance: `text` of the empty (or negative) prompt, image embeddings zeros."""
        return self.of(text.expand(len(self.clip_text)), torch.zeros_like(self.clip_img))

    def as_kwargs(self) -> dict[str, Tensor]:
        """By the names of `StageC.forward`."""
        return {"clip_text": self.clip_text, "clip_text_pooled": self.clip_text_pooled, "clip_img": self.clip_img}


@dataclass(frozen=True)
class StageBInputs:
    """Stage B's conditions: stage_c [B, 16, h, w] (latents of Stage C or an image), clip [B, 1, c] (pooled text)."""

    stage_c: Tensor
    clip: Tensor

    def unconditional(self, text: TextEmbedding) -> StageBInputs:
        """The released counterpart for guidance: pooled `text` of the empty (or negative) prompt, stage_c zeros."""
        return StageBInputs(torch.zeros_like(self.stage_c), text.expand(len(self.stage_c)).pooled)

    def as_kwargs(self) -> dict[str, Tensor]:
        """By the names of `StageB.forward`."""
        return {"effnet": self.stage_c, "clip": self.clip}
