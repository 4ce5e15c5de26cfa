"""Whole jobs: from prompts or images, through one stage after another, to images."""

from __future__ import annotations

from ..diffusion import SamplingSettings
from .control import Control
from .edit import Edited, edit, word_maps
from .edit_images import edit_images, invert_images
from .generate import Generated, ImageToImage, RegionalPrompt, Settings, generate
from .high_res import HighRes
from .instruct import follow
from .inversion import Inversion
from .ip_adapter import IPAdapterImages
from .mix import mix
from .networks import Parts
from .plan import STAGE_B_SETTINGS, STAGE_C_SETTINGS, StagePlan, Start, Tiles
from .presets import PRESETS, Preset
from .prior import PRIOR_SETTINGS, PriorPrompt, sample_prior
from .prompt_images import ImagePrompt
from .reconstruct import reconstruct
from .search import find_parts
from .sizes import LatentSizes, compression_warning, latent_sizes, stage_b_size, with_short_side
from .stages import (
    decode,
    encode_effnet,
    encode_prompts,
    encode_stage_a,
    encode_stage_c,
    sample_features,
    sample_stage_b,
    sample_stage_c,
)
from .style import StyleReference

__all__ = [
    "PRESETS",
    "PRIOR_SETTINGS",
    "STAGE_B_SETTINGS",
    "STAGE_C_SETTINGS",
    "Control",
    "Edited",
    "Generated",
    "HighRes",
    "IPAdapterImages",
    "ImagePrompt",
    "ImageToImage",
    "Inversion",
    "LatentSizes",
    "Parts",
    "Preset",
    "PriorPrompt",
    "RegionalPrompt",
    "SamplingSettings",
    "Settings",
    "StagePlan",
    "Start",
    "StyleReference",
    "Tiles",
    "compression_warning",
    "decode",
    "edit",
    "edit_images",
    "encode_effnet",
    "encode_prompts",
    "encode_stage_a",
    "encode_stage_c",
    "find_parts",
    "follow",
    "generate",
    "invert_images",
    "latent_sizes",
    "mix",
    "reconstruct",
    "sample_features",
    "sample_prior",
    "sample_stage_b",
    "sample_stage_c",
    "stage_b_size",
    "with_short_side",
    "word_maps",
]
