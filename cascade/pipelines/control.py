"""ControlNets in a run of Stage C."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion import RELEASED_DIFFUSION
from ..images import fit_hint
from ..models import Conditions, ControlNet, StageC


@dataclass(frozen=True, kw_only=True)
class Control:
    """A ControlNet and what it is shown.

    net: of the Stage C's width.
    hint: [B or 1, c, H, W], as `images` makes it: one for each image, or one for all.
    strength: a factor of what it adds; 0 is as without it.
    start, end: the part of the run in which it acts, from 0 (noise) up to, not including, 1 (image).
    """

    net: ControlNet
    hint: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def of(self, rows: Sequence[int]) -> Control:
        """For some of the images."""
        return self if len(self.hint) == 1 else replace(self, hint=self.hint[list(rows)])

    @torch.no_grad()
    def residuals(self, height: int, width: int, batch: int) -> list[Tensor | None]:
        """What it adds [batch, width, h, w] before each residual block, for latents of height x width."""
        parameter = next(self.net.parameters())
        hint = fit_hint(self.hint.float(), height, width, image=self.net.config.reads_images)
        found = self.net(hint.to(parameter))
        return [None if each is None else (self.strength * each).expand(batch, -1, -1, -1) for each in found]


def controlled(
    net: StageC, controls: Sequence[Control], size: Sequence[int], batch: int, shift: float
) -> Callable[..., Tensor]:
    """Stage C's `denoise` with what the controls add. Their hints are read once.

    Raises ValueError for a ControlNet of another width than Stage C's.
    """
    width = net.config.levels[0].width
    for control in controls:
        if control.net.config.width != width:
            raise ValueError(
                f"the ControlNet was made for a Stage C of width {control.net.config.width}, this one's is {width}"
            )
    made = [(control, control.residuals(size[-2], size[-1], batch)) for control in controls if control.strength]

    def denoise(x: Tensor, r: Tensor, conditions: Conditions) -> Tensor:
        run = 1 - _time(r, shift)
        acting = [residuals for control, residuals in made if control.start <= run < control.end]
        return net.denoise(x, r, conditions, control=_added(acting, x) if acting else None)

    return denoise


def _time(r: Tensor, shift: float) -> float:
    """The time of the run [1 to 0] of the noise condition r, which does not know of the shift."""
    log_snr = RELEASED_DIFFUSION.schedule(r[0].double().cpu(), 1.0) + 2 * math.log(shift)
    # Rounded, so that an end that was typed belongs to it.
    return round(float(RELEASED_DIFFUSION.noise_condition(log_snr)), 5)


def _added(acting: Sequence[list[Tensor | None]], x: Tensor) -> list[Tensor | None]:
    """The sum of several nets' residuals, for a batch that may hold the images twice (with guidance)."""
    total: list[Tensor | None] = [None] * max(map(len, acting))
    for residuals in acting:
        for block, residual in enumerate(residuals):
            before = total[block]
            if residual is not None:
                total[block] = residual if before is None else before + residual
    # The stream between the blocks is float32 where the network is float16.
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    return [None if each is None else each.repeat(len(x) // len(each), 1, 1, 1).to(x.device, dtype) for each in total]
