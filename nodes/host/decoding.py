"""Decoding in one piece or in tiles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import checks

TILE = 1024
"""Side in pixels of the tiles in which large images are encoded and decoded."""


def too_large(vae: Any, samples: Tensor) -> bool:
    """Whether decoding one image of these latents would not fit into memory."""
    return checks.too_large(vae.memory_used_decode(samples.shape, vae.vae_dtype), vae.device)


def decode(vae: Any, samples: Tensor) -> Tensor:
    """Images [B, H, W, 3], in tiles where the whole would not fit."""
    return decode_tiled(vae, samples, TILE) if too_large(vae, samples) else vae.decode(samples)


def decode_tiled(vae: Any, samples: Tensor, tile_size: int) -> Tensor:
    """Images [B, H, W, 3]; tiles of `tile_size` pixels overlap by an eighth of it."""
    side = max(8, tile_size // vae.upscale_ratio)
    return vae.decode_tiled(samples, tile_x=side, tile_y=side, overlap=max(2, side // 8))
