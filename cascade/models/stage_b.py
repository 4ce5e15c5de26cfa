"""Stage B: from the EfficientNet encoder's latents to Stage A's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Attention, LayerNorm2d, resize, scaled_dot_product_attention, stream
from .config import Level, StackConfig, reference_levels
from .layers import layer_factory
from .stack import Conditions, Rescale, Stack


@dataclass(frozen=True, kw_only=True)
class StageBConfig(StackConfig):
    """Sizes of a Stage B.

    Args:
        clip: channels of the text encoder's projected embedding.
        effnet: channels of the EfficientNet encoder's latents.
        pixels: channels of the optional small image.
    """

    latent_channels: int = 4
    patch_size: int = 2
    timestep_conditions: tuple[str, ...] = ("sca",)
    condition_channels: int = 1280
    clip: int = 1280
    effnet: int = 16
    pixels: int = 3
    levels: tuple[Level, ...] = (
        Level(320, 0, 2, "CT", up_repeats=2),
        Level(640, 0, 6, "CT", up_repeats=2),
        Level(1280, 20, 28, up_repeats=3),
        Level(1280, 20, 6, up_repeats=3),
    )

    @classmethod
    def from_reference(
        cls,
        *,
        c_in: int = 4,
        c_out: int = 4,
        c_r: int = 64,
        patch_size: int = 2,
        c_cond: int = 1280,
        c_hidden: Sequence[int] = (320, 640, 1280, 1280),
        nhead: Sequence[int] = (-1, -1, 20, 20),
        blocks: Sequence[Sequence[int]] = ((2, 6, 28, 6), (6, 28, 6, 2)),
        block_repeat: Sequence[Sequence[int]] = ((1, 1, 1, 1), (3, 3, 2, 2)),
        level_config: Sequence[str] = ("CT", "CT", "CTA", "CTA"),
        c_clip: int = 1280,
        c_clip_seq: int = 4,
        c_effnet: int = 16,
        c_pixels: int = 3,
        kernel_size: int = 3,
        dropout: Sequence[float] | float = (0, 0, 0.1, 0.1),
        self_attn: bool = True,
        t_conds: Sequence[str] = ("sca",),
    ) -> StageBConfig:
        """From the reference constructor's arguments. `dropout` belongs to a training, not to the network."""
        if c_in != c_out:
            raise ValueError(f"Stage B predicts what it reads: c_in {c_in} and c_out {c_out} must be equal")
        return cls(
            latent_channels=c_in,
            patch_size=patch_size,
            timestep_channels=c_r,
            timestep_conditions=tuple(t_conds),
            condition_channels=c_cond,
            condition_tokens=c_clip_seq,
            kernel_size=kernel_size,
            self_attention=self_attn,
            clip=c_clip,
            effnet=c_effnet,
            pixels=c_pixels,
            levels=reference_levels(c_hidden, nhead, blocks, block_repeat, level_config),
        )


STAGE_B_1_5B = StageBConfig()
STAGE_B_700M = StageBConfig(
    levels=(
        Level(320, 0, 2, "CT", up_repeats=2),
        Level(576, 0, 4, "CT", up_repeats=2),
        Level(1152, 18, 14, up_repeats=2),
        Level(1152, 18, 4, up_repeats=2),
    )
)


class StageB(Stack):
    """Stage B (Pernias et al. 2023, Wuerstchen, section 3; released as the 1.5B and the 700M model)."""

    config: StageBConfig

    def __init__(
        self, config: StageBConfig, *, ops: Any = nn, attention: Attention = scaled_dot_product_attention
    ) -> None:
        ops = layer_factory(ops)
        super().__init__(config, ops, attention)
        width = config.levels[0].width
        self.effnet_mapper = _mapper(config.effnet, width, ops)
        self.pixels_mapper = _mapper(config.pixels, width, ops)
        self.clip_mapper = ops.Linear(config.clip, config.condition_channels * config.condition_tokens)

    def _down(self, level: int, ops: Any) -> nn.Module:
        before, after = self.config.levels[level - 1].width, self.config.levels[level].width
        return _Halve(before, ops.Conv2d(before, after, 2, stride=2))

    def _up(self, level: int, ops: Any) -> nn.Module:
        before, after = self.config.levels[level].width, self.config.levels[level - 1].width
        return Rescale(before, ops.ConvTranspose2d(before, after, 2, stride=2))

    def conditions(
        self,
        effnet: Tensor,
        clip: Tensor,
        *,
        size: tuple[int, int] | torch.Size,
        pixels: Tensor | None = None,
        sca: Tensor | None = None,
    ) -> Conditions:
        """All that depends on the embeddings and images alone, for `denoise` of latents of `size` (h, w).

        Other arguments as in `forward`.
        """
        patch = self.config.patch_size
        grid = (-(-size[0] // patch), -(-size[1] // patch))
        if pixels is None:
            pixels = effnet.new_zeros(effnet.shape[0], self.config.pixels, 8, 8)
        spatial = self.effnet_mapper(resize(effnet, grid)) + resize(self.pixels_mapper(pixels), grid)
        tokens = self._pooled_tokens(self.clip_mapper, clip)
        return self._conditions(tokens, {"sca": sca}, stream(spatial))

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        effnet: Tensor,
        clip: Tensor,
        *,
        pixels: Tensor | None = None,
        sca: Tensor | None = None,
    ) -> Tensor:
        """The prediction [B, 4, h, w].

        Args:
            x: latents with noise [B, 4, h, w], any size.
            r: noise conditions [B] in [0, 1].
            effnet: the EfficientNet encoder's or Stage C's latents [B, 16, h', w'], any size; zeros for none.
            clip: pooled text embedding [B, 1, clip] or [B, clip].
            pixels: a small image [B, 3, h'', w'']; zeros where not given.
            sca: extra timestep condition [B]; 0 where not given.
        """
        conditions = self.conditions(effnet, clip, size=x.shape[-2:], pixels=pixels, sca=sca)
        return self.denoise(x, r, conditions)


class _Halve(Rescale):
    """Rescale by a strided convolution; a side of 1 is repeated, since there is no half of it."""

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        bottom, right = (int(n < 2) for n in x.shape[-2:])
        return super().forward(F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x, dtype)


def _mapper(channels: int, width: int, ops: Any) -> nn.Sequential:
    return nn.Sequential(
        ops.Conv2d(channels, width * 4, 1), nn.GELU(), ops.Conv2d(width * 4, width, 1), LayerNorm2d(width)
    )
