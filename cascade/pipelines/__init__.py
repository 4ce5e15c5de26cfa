"""Whole jobs: from prompts or pictures, through one stage after another, to pictures."""

from __future__ import annotations

from .find import find_parts
from .generate import Generated, Settings, generate
from .parts import Parts
from .reconstruct import encode_effnet, reconstruct
from .sizes import LatentSizes, latent_sizes
from .stages import (
    STAGE_B_SETTINGS,
    STAGE_C_SETTINGS,
    SamplingSettings,
    decode,
    encode_prompts,
    sample_stage_b,
    sample_stage_c,
)

__all__ = [
    "STAGE_B_SETTINGS",
    "STAGE_C_SETTINGS",
    "Generated",
    "LatentSizes",
    "Parts",
    "SamplingSettings",
    "Settings",
    "decode",
    "encode_effnet",
    "encode_prompts",
    "find_parts",
    "generate",
    "latent_sizes",
    "reconstruct",
    "sample_stage_b",
    "sample_stage_c",
]
