"""Editing: what attention does to the tokens of a prompt, and how prompts are compared."""

from __future__ import annotations

from .attention import AttentionController, NetworkCall, Tokens
from .blocks import BLOCK_WEIGHTS, BlockWeights
from .ip_adapter import AdapterTokens, IPAdapters
from .maps import WordMaps, lit
from .prompt_images import COMBINE, PlacedImages, PromptImages, SeenImages
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
    "AdapterTokens",
    "Alignment",
    "AttentionController",
    "BlockWeights",
    "ControlSteps",
    "EditStrength",
    "IPAdapters",
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
