"""From the size of an image to the sizes of its latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ..errors import InvalidSize
from ..images import short_side_size
from ..images.resize import COMPRESSION

STAGE_B_FACTOR = 4
"""Pixels of an image per position of Stage B's latent, along a side."""
TRAINED_COMPRESSION = (32, 64)
"""Pixels along a side for each position of Stage C's latents in Stage B's training."""
SMALLEST = 32
LARGEST = 16384


@dataclass(frozen=True)
class LatentSizes:
    """Channels, height and width of the latents of one image."""

    stage_c: tuple[int, int, int]
    stage_b: tuple[int, int, int]


def latent_sizes(height: int, width: int) -> LatentSizes:
    """The released size rule: Stage C 16 x ceil(H / 42.67) x ceil(W / 42.67), Stage B 4 x ceil(H / 4) x ceil(W / 4).

    Raises InvalidSize for a side below 32 or above 16384 pixels.
    """
    for name, side in (("height", height), ("width", width)):
        if not SMALLEST <= side <= LARGEST:
            raise InvalidSize(f"An image's {name} must be {SMALLEST} to {LARGEST} pixels, not {side}.")
    return LatentSizes(
        stage_c=(16, ceil(height / COMPRESSION), ceil(width / COMPRESSION)),
        stage_b=(4, ceil(height / STAGE_B_FACTOR), ceil(width / STAGE_B_FACTOR)),
    )


def stage_b_size(stage_c: Sequence[int]) -> tuple[int, int]:
    """Height and width of Stage B's latent for the image whose Stage C latent [..., h, w] this is; both even."""
    height, width = (2 * round(side * COMPRESSION / STAGE_B_FACTOR / 2) for side in stage_c[-2:])
    return height, width


def with_short_side(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of an image scaled to this short side; the long side is rounded down.

    Raises InvalidSize as `latent_sizes`, if the long side is too long.
    """
    scaled = short_side_size(height, width, short_side)
    latent_sizes(*scaled)
    return scaled


def compression_warning(stage_c: Sequence[int], stage_b: Sequence[int]) -> str | None:
    """A warning if the sizes of both stages' latents [..., h, w] do not fit together as in the training; else None."""
    most, least = TRAINED_COMPRESSION
    pairs = [(large * STAGE_B_FACTOR, small) for small, large in zip(stage_c[-2:], stage_b[-2:], strict=True)]
    # One latent more or less is rounding.
    if all(side / least - 1 <= small <= side / most + 1 for side, small in pairs):
        return None
    height, width = (side for side, _ in pairs)
    return (
        f"Stage C's latent of {pairs[0][1]} x {pairs[1][1]} for an image of {height} x {width} pixels is a "
        f"compression of {max(side / small for side, small in pairs):.0f}; Stage B was trained with {most} to {least}. "
        f"Sizes that fit: {ceil(height / COMPRESSION)} x {ceil(width / COMPRESSION)} (height x width)."
    )
