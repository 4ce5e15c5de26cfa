"""Decoding in one piece or in tiles."""

from __future__ import annotations

from typing import Any

import comfy.model_management
from torch import Tensor

TILE = 1024


def too_large(vae: Any, samples: Tensor) -> bool:
    """Whether one picture of these latents would not fit into the memory that is left."""
    needed = vae.memory_used_decode(samples.shape, vae.vae_dtype)
    # Free as it can become: what other models hold makes room.
    return needed > comfy.model_management.get_total_memory(vae.device) * 0.7


def decode(vae: Any, samples: Tensor) -> Tensor:
    """Pictures [B, H, W, 3], in tiles where the whole would not fit."""
    return decode_tiled(vae, samples, TILE) if too_large(vae, samples) else vae.decode(samples)


def decode_tiled(vae: Any, samples: Tensor, tile_size: int) -> Tensor:
    """Pictures [B, H, W, 3]; tiles of `tile_size` pixels overlap by an eighth of it."""
    side = max(8, tile_size // vae.upscale_ratio)
    return vae.decode_tiled(samples, tile_x=side, tile_y=side, overlap=max(2, side // 8))
