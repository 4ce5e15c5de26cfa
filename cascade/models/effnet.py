"""The EfficientNet encoder: images to Stage C's 16-channel latents, with sides divided by 32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import BatchNorm2d
from .config import Config
from .layers import layer_factory


@dataclass(frozen=True)
class EffnetStage:
    """Blocks of one width; the first changes the width and, with stride 2, halves the size.

    Args:
        fused: 3 x 3 convolutions in place of depthwise ones with squeeze and excitation.
        expansion: width inside a block, as a multiple of the width it reads.
        stride: of the first block.
        width: channels out.
        depth: blocks.
    """

    fused: bool
    expansion: int
    stride: int
    width: int
    depth: int


@dataclass(frozen=True, kw_only=True)
class EffnetConfig(Config):
    """Sizes of an EfficientNetV2 (Tan and Le 2021, table 4) with a mapper to latents.

    Args:
        in_channels: channels of the image.
        stem: channels of the first convolution.
        stages: the stages between the first and the last convolution.
        head: channels of the last convolution.
        latent_channels: channels out.
    """

    in_channels: int = 3
    stem: int = 24
    stages: tuple[EffnetStage, ...] = (
        EffnetStage(True, 1, 1, 24, 2),
        EffnetStage(True, 4, 2, 48, 4),
        EffnetStage(True, 4, 2, 64, 4),
        EffnetStage(False, 4, 2, 128, 6),
        EffnetStage(False, 6, 1, 160, 9),
        EffnetStage(False, 6, 2, 256, 15),
    )
    head: int = 1280
    latent_channels: int = 16

    @classmethod
    def from_reference(cls, *, c_latent: int = 16, effnet: str = "efficientnet_v2_s") -> EffnetConfig:
        """From the reference constructor's arguments.

        Raises:
            ValueError: another EfficientNet than the released one.
        """
        if effnet != "efficientnet_v2_s":
            raise ValueError(f"the released encoder is an efficientnet_v2_s; {effnet} is not known")
        return cls(latent_channels=c_latent)

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        if name == "stages":
            return tuple(EffnetStage(**stage) if isinstance(stage, Mapping) else stage for stage in value)
        return super()._read(name, value)


EFFNET_V2_S = EffnetConfig()


class SqueezeExcitation(nn.Module):
    """Channels weighted by the means over the whole image (Hu et al. 2018)."""

    def __init__(self, width: int, squeezed: int, ops: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = ops.Conv2d(width, squeezed, 1), ops.Conv2d(squeezed, width, 1)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.activation(self.fc1(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()


class InvertedResidual(nn.Module):
    """MBConv or fused MBConv (Tan and Le 2021, figure 2), with a residual if size and width do not change."""

    def __init__(self, width_in: int, stage: EffnetStage, stride: int, ops: Any) -> None:
        super().__init__()
        inside, width = width_in * stage.expansion, stage.width
        layers: list[nn.Module] = []
        if stage.fused:
            last = stage.expansion == 1
            layers.append(_conv(width_in, width if last else inside, 3, ops, stride=stride))
            layers += [] if last else [_conv(inside, width, 1, ops, activation=False)]
        else:
            layers += [] if stage.expansion == 1 else [_conv(width_in, inside, 1, ops)]
            layers.append(_conv(inside, inside, 3, ops, stride=stride, groups=inside))
            layers.append(SqueezeExcitation(inside, max(1, width_in // 4), ops))
            layers.append(_conv(inside, width, 1, ops, activation=False))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


def _conv(
    width_in: int,
    width: int,
    kernel: int,
    ops: Any,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
    padding: int | None = None,
) -> nn.Sequential:
    padding = kernel // 2 if padding is None else padding
    conv = ops.Conv2d(width_in, width, kernel, stride=stride, padding=padding, groups=groups, bias=False)
    return nn.Sequential(conv, BatchNorm2d(width, eps=1e-3), *([nn.SiLU()] if activation else []))


def effnet_features(config: EffnetConfig, ops: Any, stem_padding: int = 1) -> nn.Sequential:
    """The convolutions of an EfficientNetV2: [B, in_channels, H, W] -> [B, head, H/32, W/32]."""
    layers: list[nn.Module] = [_conv(config.in_channels, config.stem, 3, ops, stride=2, padding=stem_padding)]
    width = config.stem
    for stage in config.stages:
        blocks = []
        for i in range(stage.depth):
            blocks.append(InvertedResidual(width, stage, stage.stride if i == 0 else 1, ops))
            width = stage.width
        layers.append(nn.Sequential(*blocks))
    return nn.Sequential(*layers, _conv(width, config.head, 1, ops))


class EffnetEncoder(nn.Module):
    """The encoder of Stage C's latents, which Stage B reads."""

    def __init__(self, config: EffnetConfig, *, ops: Any = nn) -> None:
        super().__init__()
        ops = layer_factory(ops)
        self.config = config
        self.backbone = effnet_features(config, ops)
        mapper = ops.Conv2d(config.head, config.latent_channels, 1, bias=False)
        self.mapper = nn.Sequential(mapper, BatchNorm2d(config.latent_channels, affine=False))

    def forward(self, normalized_images: Tensor) -> Tensor:
        """Latents [B, 16, ceil(H/32), ceil(W/32)] of images [B, 3, H, W] normalized as ImageNet's are."""
        return self.mapper(self.backbone(normalized_images.contiguous(memory_format=torch.channels_last)))
