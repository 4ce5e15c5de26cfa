"""ControlNets in a run of Stage C."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..diffusion import InInterval, NetworkArguments
from ..errors import IncompatibleCheckpoint
from ..images import fit_hint
from ..models import ControlNet, ControlNetConfig, Residuals


@dataclass(frozen=True, kw_only=True)
class Control(InInterval):
    """A ControlNet and its hint.

    net: of the Stage C's width.
    hint: [B or 1, c, H, W], as `images` makes it: one for each image, or one for all.
    strength: a factor of its residuals; 0 has no effect.
    exact: the hint lies on the grid of the run's latents, and is read as it is.
    """

    net: ControlNet
    hint: Tensor
    strength: float = 1.0
    exact: bool = False

    def of(self, rows: Sequence[int]) -> Control:
        """For some of the images."""
        return self if len(self.hint) == 1 else replace(self, hint=self.hint[list(rows)])


class ControlRun:
    """The ControlNets of one run of Stage C: each hint is read once, for latents of height x width.

    Raises IncompatibleCheckpoint for a ControlNet that does not fit Stage C's width and residual blocks.
    """

    @torch.no_grad()
    def __init__(self, controls: Sequence[Control], width: int, blocks: int, size: Sequence[int]) -> None:
        for control in controls:
            check_fit(control.net.config, width, blocks)
        self.acting = [(control, _residuals(control, *size[-2:])) for control in controls if control.strength]

    def __call__(self, percent: float, batch: int) -> NetworkArguments:
        """The argument `control` of Stage C at this part of the run, for a batch that may contain the images twice."""
        acting = [residuals for control, residuals in self.acting if percent in control.interval]
        if not acting:
            return {}
        return {"control": [None if each is None else for_batch(each, batch) for each in added(acting)]}


def check_fit(config: ControlNetConfig, width: int, blocks: int) -> None:
    """Raises IncompatibleCheckpoint for a ControlNet that was made for another Stage C.

    width: channels of Stage C. blocks: its residual blocks.
    """
    if config.width != width:
        raise IncompatibleCheckpoint(
            f"this ControlNet was made for a Stage C of width {config.width}; this one's is {width} (2048: 3.6B, 1536: "
            "1B, 128: tiny cascade). Load the ControlNet or the Stage C that belongs to the other."
        )
    if max(config.blocks) >= blocks:
        raise IncompatibleCheckpoint(
            f"this ControlNet was made for a Stage C with at least {max(config.blocks) + 1} residual blocks; this one "
            f"has {blocks}. Load the Stage C that belongs to it, or name the blocks that it controls."
        )


def _residuals(control: Control, height: int, width: int) -> list[Tensor | None]:
    parameter = next(control.net.parameters())
    device, dtype = parameter.device, parameter.dtype
    if control.exact:
        found = control.net(control.hint.to(device, dtype))
    else:
        found = read_hint(control.net, control.hint, height, width, device=device, dtype=dtype)
    return [None if each is None else control.strength * each for each in found]


def read_hint(
    net: ControlNet, hint: Tensor, height: int, width: int, *, device: torch.device, dtype: torch.dtype
) -> list[Tensor | None]:
    """The residuals [B, width, h, w] of a hint [B, c, H, W], for latents of height x width."""
    return net(fit_hint(hint.float(), height, width, image=net.config.reads_images).to(device, dtype))


def added(lists: Iterable[Residuals]) -> list[Tensor | None]:
    """The sum of several lists of residuals, block by block; None where no list has one. Lists may differ in length.

    A residual of another size is scaled to that of the later one (ComfyUI's own ControlNets may have another grid).

    Raises IncompatibleCheckpoint for residuals of different width.
    """
    total: list[Tensor | None] = []
    for residuals in lists:
        total += [None] * (len(residuals) - len(total))
        for block, residual in enumerate(residuals):
            before = total[block]
            if residual is not None:
                total[block] = residual if before is None else _sum(before, residual)
    return total


def _sum(first: Tensor, second: Tensor) -> Tensor:
    if first.shape[1] != second.shape[1]:
        raise IncompatibleCheckpoint(
            f"two ControlNets were made for Stage Cs of different width ({first.shape[1]} and {second.shape[1]}): they "
            "cannot act together"
        )
    if first.shape[-2:] != second.shape[-2:]:
        first = F.interpolate(first, second.shape[-2:], mode="bilinear", align_corners=True)
    return first + second.to(first)


def for_batch(residual: Tensor, batch: int, groups: int = 1) -> Tensor:
    """Residuals [hints, c, h, w] for a batch that contains the same images `groups` times: a single hint is for all."""
    if len(residual) == 1:
        return residual.expand(batch, -1, -1, -1)
    images = batch // groups
    repeated = residual.repeat(-(-images // len(residual)), 1, 1, 1)[:images]
    return repeated.repeat(groups, 1, 1, 1)
