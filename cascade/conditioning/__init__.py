"""Text and image embeddings, the conditions of Stage C and Stage B."""

from __future__ import annotations

from .image import ImageEncoder, noise_augmented
from .inputs import StageBInputs, StageCInputs
from .text import TextEmbedding, TextEncoder, check_prompt
from .vocabulary import tokenizer

__all__ = [
    "ImageEncoder",
    "StageBInputs",
    "StageCInputs",
    "TextEmbedding",
    "TextEncoder",
    "check_prompt",
    "noise_augmented",
    "tokenizer",
]
