"""Stage A: images to latents of a quarter of their size, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import BatchNorm2d, LayerNorm2d, channels_first, channels_last
from .config import Config
from .layers import layer_factory


@dataclass(frozen=True, kw_only=True)
class StageAConfig(Config):
    """Sizes of a Stage A.

    Args:
        levels: resolutions; the image is folded by 2 at the first and halved between each two.
        bottleneck_blocks: residual blocks at the coarsest resolution of the decoder.
        width: channels at the coarsest resolution, halved for each finer one.
        latent_channels: channels of the latents.
        codebook_size: entries of the quantizer, which training uses and encoding does not.
        scale_factor: latents are divided by it when encoded.
    """

    levels: int = 2
    bottleneck_blocks: int = 12
    width: int = 384
    latent_channels: int = 4
    codebook_size: int = 8192
    scale_factor: float = 0.43

    @classmethod
    def from_reference(
        cls,
        *,
        levels: int = 2,
        bottleneck_blocks: int = 12,
        c_hidden: int = 384,
        c_latent: int = 4,
        codebook_size: int = 8192,
        scale_factor: float = 0.43,
    ) -> StageAConfig:
        """From the reference constructor's arguments."""
        return cls(
            levels=levels,
            bottleneck_blocks=bottleneck_blocks,
            width=c_hidden,
            latent_channels=c_latent,
            codebook_size=codebook_size,
            scale_factor=scale_factor,
        )

    @property
    def compression(self) -> int:
        """Pixels of the image along a side for each position of the latent."""
        return 2**self.levels

    @property
    def decoding_reach(self) -> int:
        """Latents to each side that a pixel depends on, at most: a 3 x 3 convolution a block, less for finer ones."""
        return self.bottleneck_blocks + 3

    @property
    def encoding_reach(self) -> int:
        """Pixels to each side that a latent depends on, at most."""
        return 4 * self.compression


STAGE_A = StageAConfig()

AT_ONCE_CPU, AT_ONCE_GPU = 4096, 65536
"""Positions that go through a block's MLP at once, if no gradient is computed.

Its hidden layer is four times as wide as the other layers, and for a whole image would take most of the memory of
decoding. So few positions fit a CPU's cache; a GPU needs more to be used fully."""


class ModulatedResBlock(nn.Module):
    """Depthwise convolution and channelwise MLP, each behind a norm and under learned scalar gates."""

    def __init__(self, width: int, ops: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(width), LayerNorm2d(width)
        self.depthwise = nn.Sequential(nn.ReplicationPad2d(1), ops.Conv2d(width, width, 3, groups=width))
        self.channelwise = nn.Sequential(ops.Linear(width, width * 4), nn.GELU(), ops.Linear(width * 4, width))
        self.gammas = nn.Parameter(torch.empty(6))

    def forward(self, x: Tensor) -> Tensor:
        gammas = self.gammas.to(x)
        x = x + self.depthwise(self.norm1(x) * (1 + gammas[0]) + gammas[1]) * gammas[2]
        if torch.is_grad_enabled():
            return self._mlp(x, gammas)
        rows = max(1, (AT_ONCE_CPU if x.device.type == "cpu" else AT_ONCE_GPU) // x.shape[3])
        return torch.cat([self._mlp(part, gammas) for part in x.split(rows, dim=2)], dim=2)

    def _mlp(self, x: Tensor, gammas: Tensor) -> Tensor:
        h = self.norm2(x) * (1 + gammas[3]) + gammas[4]
        return x + channels_first(self.channelwise(channels_last(h))) * gammas[5]


class VectorQuantizer(nn.Module):
    """The nearest entry of a codebook (van den Oord et al. 2017, eq. 1-2)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.codebook = nn.Module()
        self.codebook.register_parameter("weight", nn.Parameter(torch.empty(size, channels)))

    @property
    def entries(self) -> nn.Parameter:
        """The codebook [size, channels]."""
        return self.codebook.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        """x [B, c, h, w] with every position replaced by its nearest entry; the gradient passes straight through."""
        rows, entries = channels_last(x).flatten(0, 2), self.entries.to(x)
        nearest = torch.cat([torch.cdist(part.float(), entries.float()).argmin(dim=1) for part in rows.split(4096)])
        quantized = channels_first(F.embedding(nearest, entries).unflatten(0, (x.shape[0], *x.shape[-2:])))
        return x + (quantized - x).detach()


class StageA(nn.Module):
    """Stage A, a quantizing autoencoder (Pernias et al. 2023, Wuerstchen, section 3; Rampas et al. 2022, Paella)."""

    def __init__(self, config: StageAConfig, *, ops: Any = nn) -> None:
        super().__init__()
        ops = layer_factory(ops)
        self.config = config
        widths = [config.width // 2**i for i in reversed(range(config.levels))]
        self.in_block = nn.Sequential(nn.PixelUnshuffle(2), ops.Conv2d(12, widths[0], 1))
        down: list[nn.Module] = []
        for i, width in enumerate(widths):
            if i > 0:
                down.append(ops.Conv2d(widths[i - 1], width, 4, stride=2, padding=1))
            down.append(ModulatedResBlock(width, ops))
        latent = ops.Conv2d(widths[-1], config.latent_channels, 1, bias=False)
        self.down_blocks = nn.Sequential(*down, nn.Sequential(latent, BatchNorm2d(config.latent_channels)))
        self.vquantizer = VectorQuantizer(config.latent_channels, config.codebook_size)
        up: list[nn.Module] = [nn.Sequential(ops.Conv2d(config.latent_channels, widths[-1], 1))]
        up += [ModulatedResBlock(widths[-1], ops) for _ in range(config.bottleneck_blocks)]
        for width, finer in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up += [ops.ConvTranspose2d(width, finer, 4, stride=2, padding=1), ModulatedResBlock(finer, ops)]
        self.up_blocks = nn.Sequential(*up)
        self.out_block = nn.Sequential(ops.Conv2d(widths[0], 12, 1), nn.PixelShuffle(2))

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, 4, ceil(H/4), ceil(W/4)] of images [B, 3, H, W] in [0, 1]; not quantized.

        Sides that are no multiple of 4 are filled by repeating the last row and column.
        """
        bottom, right = (-n % self.config.compression for n in images.shape[-2:])
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom), mode="replicate")
        return (
            self.down_blocks(self.in_block(images.contiguous(memory_format=torch.channels_last)))
            / self.config.scale_factor
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, 4h, 4w], in [0, 1] but for small overshoots, of latents [B, 4, h, w]."""
        latents = latents.contiguous(memory_format=torch.channels_last)
        return self.out_block(self.up_blocks(latents * self.config.scale_factor))

    def quantize(self, latents: Tensor) -> Tensor:
        """Latents [B, 4, h, w] with every position replaced by the codebook's nearest entry."""
        return self.vquantizer(latents * self.config.scale_factor) / self.config.scale_factor

    def forward(self, images: Tensor) -> Tensor:
        """decode(encode(images))."""
        return self.decode(self.encode(images))
