"""ControlNet: residuals for Stage C's blocks from a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import channels_first, channels_last
from .config import Config
from .effnet import EFFNET_V2_S, EffnetConfig, EffnetStage, effnet_features
from .layers import layer_factory

BACKBONES = ("effnet", "simple", "large")

MAX_BLOCKS = 1000
"""Blocks of a Stage C, at most; the released one has 64. A residual, or none, is kept for each."""


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(Config):
    """Sizes of a ControlNet.

    Args:
        in_channels: channels of the hint.
        width: channels of the Stage C that it controls.
        blocks: the residual blocks of Stage C that get a residual, in order of execution.
        backbone: effnet reads images, simple a hint on the latents' grid, large the encoder's latents.
        features: channels that an effnet or large backbone gives the projections.
        stem, stages: the effnet's sizes, as in `EffnetConfig`.
        inside: channels of a large backbone: of its first convolution, and of its residual blocks.
        depth: a large backbone's residual blocks.
        hint: what the hint shows, such as sketch; empty where the file does not say.
    """

    in_channels: int
    width: int = 2048
    blocks: tuple[int, ...] = (0, 4, 8, 12, 51, 55, 59, 63)
    backbone: str = "effnet"
    features: int = EFFNET_V2_S.head
    stem: int = EFFNET_V2_S.stem
    stages: tuple[EffnetStage, ...] = EFFNET_V2_S.stages
    inside: tuple[int, int] = (16384, 1024)
    depth: int = 8
    hint: str = field(default="", compare=False)

    @property
    def reads_images(self) -> bool:
        """Whether the hint is as large as the image, not on the latents' grid."""
        return self.backbone == "effnet"

    def to_dict(self) -> dict[str, Any]:
        """As of every config; sizes of the other backbones are left out."""
        sizes = {"effnet": ("features", "stem", "stages"), "simple": (), "large": ("features", "inside", "depth")}
        others = {name for names in sizes.values() for name in names} - set(sizes[self.backbone])
        others |= set() if self.hint else {"hint"}
        return {name: value for name, value in super().to_dict().items() if name not in others}

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        if name == "stages":
            return tuple(EffnetStage(**stage) if isinstance(stage, Mapping) else stage for stage in value)
        return super()._read(name, value)

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"a ControlNet's backbone is one of {', '.join(BACKBONES)}, not {self.backbone}")
        if not self.blocks or len(set(self.blocks)) != len(self.blocks) or min(self.blocks) < 0:
            raise ValueError(f"a ControlNet's blocks are different numbers from 0, not {self.blocks}")
        if max(self.blocks) >= MAX_BLOCKS:
            raise ValueError(f"a ControlNet's blocks are numbers below {MAX_BLOCKS}, not {max(self.blocks)}")

    @classmethod
    def from_reference(
        cls,
        *,
        c_in: int = 3,
        c_proj: int = 2048,
        proj_blocks: Sequence[int] = (0, 4, 8, 12, 51, 55, 59, 63),
        bottleneck_mode: str | None = None,
    ) -> ControlNetConfig:
        """From the reference constructor's arguments."""
        return cls(in_channels=c_in, width=c_proj, blocks=tuple(proj_blocks), backbone=bottleneck_mode or "effnet")


CONTROLNET_CANNY = ControlNetConfig(in_channels=1)
CONTROLNET_INPAINTING = ControlNetConfig(in_channels=4)
CONTROLNET_SUPER_RESOLUTION = ControlNetConfig(in_channels=16, backbone="large")
CONTROLNET_IDENTITY = ControlNetConfig(in_channels=512, blocks=tuple(range(64)), backbone="simple")

T2I_ADAPTER = ControlNetConfig(
    in_channels=1,
    features=256,
    stem=16,
    stages=(
        EffnetStage(True, 1, 2, 32, 1),
        EffnetStage(True, 2, 2, 48, 2),
        EffnetStage(False, 4, 2, 64, 2),
        EffnetStage(False, 4, 2, 96, 2),
    ),
)
"""A light one, a tenth of the canny ControlNet (Mou et al. 2023, "T2I-Adapter")."""


class ControlResBlock(nn.Module):
    """A residual block with two norms, activations and 3 x 3 convolutions."""

    def __init__(self, width: int, ops: Any) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ops.LayerNorm(width),
            nn.GELU(),
            ops.Conv2d(width, width, 3, padding=1),
            ops.LayerNorm(width),
            nn.GELU(),
            ops.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.blocks:
            # The factory's layer norm works on the last dimension.
            h = channels_first(layer(channels_last(h))) if isinstance(layer, nn.LayerNorm) else layer(h)
        return x + h


def _backbone(config: ControlNetConfig, ops: Any) -> tuple[nn.Sequential, int]:
    """The network that reads the hint, and its channels out."""
    match config.backbone:
        case "effnet":
            effnet = EffnetConfig(
                in_channels=config.in_channels, stem=config.stem, stages=config.stages, head=config.features
            )
            # The reference replaces the first convolution for other numbers of channels, without its padding.
            return effnet_features(effnet, ops, stem_padding=1 if config.in_channels == 3 else 0), effnet.head
        case "simple":
            width = config.in_channels
            return nn.Sequential(
                ops.Conv2d(width, width * 4, 3, padding=1),
                nn.LeakyReLU(0.2),
                ops.Conv2d(width * 4, width, 3, padding=1),
            ), width
        case _:
            inside, width = config.inside
            return nn.Sequential(
                ops.Conv2d(config.in_channels, inside, 1),
                nn.LeakyReLU(0.2),
                ops.Conv2d(inside, width, 1),
                *[ControlResBlock(width, ops) for _ in range(config.depth)],
                ops.Conv2d(width, config.features, 1),
            ), config.features


class ControlNet(nn.Module):
    """ControlNet of the released kinds (after Zhang et al. 2023), which reads only the hint, not the latents."""

    def __init__(self, config: ControlNetConfig, *, ops: Any = nn) -> None:
        super().__init__()
        ops = layer_factory(ops)
        self.config = config
        self.backbone, width = _backbone(config, ops)
        self.projections = nn.ModuleList(
            nn.Sequential(
                ops.Conv2d(width, width, 1, bias=False),
                nn.LeakyReLU(0.2),
                ops.Conv2d(width, config.width, 1, bias=False),
            )
            for _ in config.blocks
        )

    def forward(self, hint: Tensor) -> list[Tensor | None]:
        """Residuals [B, width, h, w] for the hint [B, in_channels, H, W].

        One entry for each residual block of Stage C up to the last controlled one; None for a block without control.
        """
        features = self.backbone(hint.contiguous(memory_format=torch.channels_last))
        residuals: list[Tensor | None] = [None] * (max(self.config.blocks) + 1)
        for block, projection in zip(self.config.blocks, self.projections, strict=True):
            residuals[block] = projection(features)
        return residuals
