"""The previewer: a small image straight from Stage C's latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import BatchNorm2d
from .config import Config
from .layers import layer_factory


@dataclass(frozen=True, kw_only=True)
class PreviewerConfig(Config):
    """Sizes of a previewer.

    Args:
        latent_channels: channels of the latents.
        width: channels of the first convolutions; a half, then a quarter of it later.
        out_channels: channels of the image.
    """

    latent_channels: int = 16
    width: int = 512
    out_channels: int = 3

    @classmethod
    def from_reference(cls, *, c_in: int = 16, c_hidden: int = 512, c_out: int = 3) -> PreviewerConfig:
        """From the reference constructor's arguments."""
        return cls(latent_channels=c_in, width=c_hidden, out_channels=c_out)


PREVIEWER = PreviewerConfig()


class Previewer(nn.Module):
    """Convolutions that double the size three times."""

    def __init__(self, config: PreviewerConfig, *, ops: Any = nn) -> None:
        super().__init__()
        ops = layer_factory(ops)
        self.config = config
        full, half, quarter = config.width, config.width // 2, config.width // 4
        convolutions = [
            ops.Conv2d(config.latent_channels, full, 1),
            ops.Conv2d(full, full, 3, padding=1),
            ops.ConvTranspose2d(full, half, 2, stride=2),
            ops.Conv2d(half, half, 3, padding=1),
            ops.ConvTranspose2d(half, quarter, 2, stride=2),
            ops.Conv2d(quarter, quarter, 3, padding=1),
            ops.ConvTranspose2d(quarter, quarter, 2, stride=2),
            ops.Conv2d(quarter, quarter, 3, padding=1),
        ]
        widths = [full, full, half, half, quarter, quarter, quarter, quarter]
        layers = [m for c, width in zip(convolutions, widths, strict=True) for m in (c, nn.GELU(), BatchNorm2d(width))]
        self.blocks = nn.Sequential(*layers, ops.Conv2d(quarter, config.out_channels, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """Images [B, 3, 8h, 8w], in [0, 1] but for small overshoots, of Stage C latents [B, 16, h, w]."""
        return self.blocks(latents.contiguous(memory_format=torch.channels_last))
