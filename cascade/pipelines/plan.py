"""One run of Stage C or Stage B as data, for every executor.

`stages` executes a plan with the library's own loop, `nodes.host.sampling` with ComfyUI's samplers. Whatever both must
agree on (noise, noise levels, intervals, the noise level of a start, tiles) is a function of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from ..diffusion import (
    RELEASED_DIFFUSION,
    Diffusion,
    Guidance,
    Inverted,
    Inverting,
    Keeping,
    SamplingSettings,
    SeededNoise,
    Steering,
)
from ..editing import AttentionController
from ..errors import InvalidSettings
from ..images import Box, blended
from ..models import Features, StageBConfig
from ..models.blocks import resize
from .control import Control
from .high_res import HighRes
from .sizes import STAGE_B_FACTOR

C = TypeVar("C")

STAGE_C_SETTINGS = SamplingSettings(steps=20, guidance=Guidance(cfg=4.0), shift=2.0)
STAGE_B_SETTINGS = SamplingSettings(steps=10, guidance=Guidance(cfg=1.1), shift=1.0)
"""The released settings."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from, instead of pure noise; `SamplingSettings.start_percent` sets its noise level.

    latents: [B, c, h, w], of the stage that runs.
    mask: [B or 1, 1, h, w]; where it is 0 the latents are kept, where it is 1 all is generated.
    as_released: add the noise level of shift 1, whatever the run's shift, as the released code does. This is less noise
        than the run expects, so more of the latents stays and the result is smoother.
    """

    latents: Tensor
    mask: Tensor | None = None
    as_released: bool = False


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles for images that are too large for memory in one piece; sizes in pixels.

    Raises InvalidSettings for tiles that overlap by more than half.
    """

    tile_size: int = 1024
    overlap: int = 256

    def __post_init__(self) -> None:
        if self.overlap > self.tile_size // 2:
            raise InvalidSettings(
                f"tiles of {self.tile_size} pixels can overlap by at most half, not by {self.overlap}"
            )

    def needed(self, size: Sequence[int]) -> bool:
        """Whether Stage B's latents of this size [..., h, w] are larger than a tile."""
        return max(size[-2:]) * STAGE_B_FACTOR > self.tile_size

    @property
    def latent_size(self) -> int:
        """Side of a tile in Stage B's latents."""
        return self.tile_size // STAGE_B_FACTOR


@dataclass(frozen=True, kw_only=True)
class StagePlan(Generic[C]):
    """One run of a stage.

    size: channels, height and width of the latents.
    seeds: one for each image of the batch.
    cond, uncond: the conditions with and without the prompt, in the executor's own form.
    controls: ControlNets with their hints (Stage C).
    attention: what controls attention in this run (Stage C).
    keeping: what the run keeps of its images, instead of the part that the start's mask keeps.
    steering: what changes the run's predictions.
    high_res, features: high-res guides, and the features that they read, one row for each image (Stage C).
    tiles: Stage B's network works in these tiles, each with its own part of Stage C's latents, blended where they
        overlap. Memory then depends on the tile size, but a tile's result does not depend on the rest of the image.
    inverted: the noise of an image's inversion, in the place of the seeds'; the start is that image.
    """

    stage: Literal["stage_c", "stage_b"]
    size: Sequence[int]
    seeds: Sequence[int]
    settings: SamplingSettings
    cond: C
    uncond: C
    start: Start | None = None
    controls: Sequence[Control] = ()
    attention: AttentionController | None = None
    keeping: Keeping | None = None
    steering: Steering | None = None
    high_res: HighRes | None = None
    features: Features | None = None
    tiles: Tiles | None = None
    inverted: Inverted | None = None

    @property
    def noise(self) -> SeededNoise | Inverted:
        """The noise of the start and of every step."""
        return SeededNoise(self.seeds, self.stage) if self.inverted is None else self.inverted

    def inverting(self, device: torch.device, diffusion: Diffusion = RELEASED_DIFFUSION) -> Inverting:
        """What finds the noise with which this run, on this device, ends at the latents of its start."""
        if self.start is None:
            raise ValueError("an inversion is that of an image: give the plan a start")
        return Inverting(self.start.latents.to(device, torch.float32), self.settings, self.noise, diffusion)

    def completed(self, samples: Tensor) -> Tensor:
        """What a run returns [B, c, h, w], with what the inversion's last step lacks."""
        if self.inverted is None:
            return samples
        rest = self.inverted.rest.to(samples)
        return samples + (rest if self.start is None or self.start.mask is None else self.start.mask.to(rest) * rest)

    def start_log_snr(self, diffusion: Diffusion = RELEASED_DIFFUSION) -> float:
        """The noise level at which the start's latents get their noise."""
        shift = 1.0 if self.start is not None and self.start.as_released else self.settings.shift
        return float(diffusion.schedule(1 - self.settings.start_percent, shift))

    @property
    def acting_tiles(self) -> Tiles | None:
        """The tiles, if the latents are larger than one tile."""
        return self.tiles if self.tiles is not None and self.tiles.needed(self.size) else None


def in_tiles(
    predict: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    x: Tensor,
    spatial: Mapping[str, Tensor],
    tiles: Tiles,
    config: StageBConfig,
) -> Tensor:
    """Stage B's prediction for latents x [B, 4, h, w], tile by tile.

    predict: called with a part of x and the same part of each spatial condition.
    spatial: conditions with a position for each part of the image [B, c, h', w'], such as Stage C's latents.
    """
    patch, coarsest = config.patch_size, 2 ** (len(config.levels) - 1)
    grid = (-(-x.shape[-2] // patch), -(-x.shape[-1] // patch))
    whole = {name: resize(condition, grid) for name, condition in spatial.items()}

    def part(x: Tensor, box: Box) -> Tensor:
        return predict(x, {name: box.scaled(1, patch).of(condition) for name, condition in whole.items()})

    # Tiles start at multiples of the coarsest level's positions, so that they are halved as the whole image is.
    overlap = tiles.overlap // STAGE_B_FACTOR
    return blended(part, x, side=tiles.latent_size, overlap=overlap, align=patch * coarsest)
