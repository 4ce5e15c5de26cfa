"""From the size of a picture to the sizes of its latents."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..errors import InvalidSize

STAGE_C_FACTOR = 42.67
STAGE_B_FACTOR = 4
SMALLEST = 32
LARGEST = 16384


@dataclass(frozen=True)
class LatentSizes:
    """Channels, height and width of the latents of one picture."""

    stage_c: tuple[int, int, int]
    stage_b: tuple[int, int, int]


def latent_sizes(height: int, width: int) -> LatentSizes:
    """The released size rule: Stage C 16 x ceil(H / 42.67) x ceil(W / 42.67), Stage B 4 x ceil(H / 4) x ceil(W / 4).

    Raises InvalidSize for a side below 32 or above 16384 pixels.
    """
    for name, side in (("height", height), ("width", width)):
        if not SMALLEST <= side <= LARGEST:
            raise InvalidSize(f"A picture's {name} must be {SMALLEST} to {LARGEST} pixels, not {side}.")
    return LatentSizes(
        stage_c=(16, ceil(height / STAGE_C_FACTOR), ceil(width / STAGE_C_FACTOR)),
        stage_b=(4, ceil(height / STAGE_B_FACTOR), ceil(width / STAGE_B_FACTOR)),
    )
