"""Editing: what attention does to the tokens of a prompt, and how prompts are compared."""

from __future__ import annotations

from .attention import AttentionController, NetworkCall, Tokens

__all__ = ["AttentionController", "NetworkCall", "Tokens"]
