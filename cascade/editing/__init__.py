"""Editing: what attention does to the tokens of a prompt, and how prompts are compared."""

from __future__ import annotations

from .attention import AttentionController, NetworkCall, Tokens
from .maps import WordMaps, lit
from .prompt_to_prompt import EditStrength, PromptToPrompt
from .references import References
from .regions import Region, Regions, box_mask
from .style_aligned import StyleAligned
from .style_control import ControlSteps, StyleControl
from .words import Alignment, PromptTokens, align

__all__ = [
    "Alignment",
    "AttentionController",
    "ControlSteps",
    "EditStrength",
    "NetworkCall",
    "PromptToPrompt",
    "PromptTokens",
    "References",
    "Region",
    "Regions",
    "StyleAligned",
    "StyleControl",
    "Tokens",
    "WordMaps",
    "align",
    "box_mask",
    "lit",
]
