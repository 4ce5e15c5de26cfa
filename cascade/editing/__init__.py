"""Editing: what attention does to the tokens of a prompt, and how prompts are compared."""

from __future__ import annotations

from .attention import AttentionController, NetworkCall, Tokens
from .maps import WordMaps, lit
from .prompt_images import BLOCK_WEIGHTS, COMBINE, BlockWeights, PlacedImages, PromptImages, SeenImages
from .prompt_to_prompt import EditStrength, PromptToPrompt
from .references import References
from .regions import Region, Regions, box_mask
from .seen import Seen, Together
from .style_aligned import StyleAligned
from .style_control import ControlSteps, StyleControl
from .words import Alignment, PromptTokens, align

__all__ = [
    "BLOCK_WEIGHTS",
    "COMBINE",
    "Alignment",
    "AttentionController",
    "BlockWeights",
    "ControlSteps",
    "EditStrength",
    "NetworkCall",
    "PlacedImages",
    "PromptImages",
    "PromptToPrompt",
    "PromptTokens",
    "References",
    "Region",
    "Regions",
    "Seen",
    "SeenImages",
    "StyleAligned",
    "StyleControl",
    "Together",
    "Tokens",
    "WordMaps",
    "align",
    "box_mask",
    "lit",
]
