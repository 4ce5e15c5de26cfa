"""Stage C: from text and image embeddings to the 16-channel latents of the EfficientNet encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Attention, resize, scaled_dot_product_attention
from .config import Level, StackConfig, reference_levels
from .high_res import FeatureRecorder, Features, GuidedRun, HighResGuides
from .layers import layer_factory
from .stack import Conditions, Rescale, Residuals, Stack


@dataclass(frozen=True, kw_only=True)
class StageCConfig(StackConfig):
    """Sizes of a Stage C.

    Args:
        clip_text: channels of the text encoder's hidden states.
        clip_text_pooled: channels of its projected embedding.
        clip_img: channels of the image encoder's embedding.
        switch_level: between each two levels, whether the resolution is halved.
    """

    latent_channels: int = 16
    patch_size: int = 1
    timestep_conditions: tuple[str, ...] = ("sca", "crp")
    condition_channels: int = 2048
    clip_text: int = 1280
    clip_text_pooled: int = 1280
    clip_img: int = 768
    switch_level: tuple[bool, ...] = (False,)
    levels: tuple[Level, ...] = (Level(2048, 32, 8), Level(2048, 32, 24))

    def __post_init__(self) -> None:
        if len(self.switch_level) != len(self.levels) - 1:
            raise ValueError(f"{len(self.levels)} levels need {len(self.levels) - 1} entries in switch_level")

    @classmethod
    def from_reference(
        cls,
        *,
        c_in: int = 16,
        c_out: int = 16,
        c_r: int = 64,
        patch_size: int = 1,
        c_cond: int = 2048,
        c_hidden: Sequence[int] = (2048, 2048),
        nhead: Sequence[int] = (32, 32),
        blocks: Sequence[Sequence[int]] = ((8, 24), (24, 8)),
        block_repeat: Sequence[Sequence[int]] = ((1, 1), (1, 1)),
        level_config: Sequence[str] = ("CTA", "CTA"),
        c_clip_text: int = 1280,
        c_clip_text_pooled: int = 1280,
        c_clip_img: int = 768,
        c_clip_seq: int = 4,
        kernel_size: int = 3,
        dropout: Sequence[float] | float = 0.1,
        self_attn: bool = True,
        t_conds: Sequence[str] = ("sca", "crp"),
        switch_level: Sequence[bool] = (False,),
    ) -> StageCConfig:
        """From the reference constructor's arguments. `dropout` belongs to a training, not to the network."""
        if c_in != c_out:
            raise ValueError(f"Stage C predicts what it reads: c_in {c_in} and c_out {c_out} must be equal")
        return cls(
            latent_channels=c_in,
            patch_size=patch_size,
            timestep_channels=c_r,
            timestep_conditions=tuple(t_conds),
            condition_channels=c_cond,
            condition_tokens=c_clip_seq,
            kernel_size=kernel_size,
            self_attention=self_attn,
            clip_text=c_clip_text,
            clip_text_pooled=c_clip_text_pooled,
            clip_img=c_clip_img,
            switch_level=tuple(switch_level),
            levels=reference_levels(c_hidden, nhead, blocks, block_repeat, level_config),
        )


STAGE_C_3_6B = StageCConfig()
STAGE_C_1B = StageCConfig(condition_channels=1536, levels=(Level(1536, 24, 4), Level(1536, 24, 12)))


class UpDownBlock2d(nn.Module):
    """A 1 x 1 convolution and, where the level switches resolution, a bilinear halving after or doubling before it."""

    def __init__(self, width_in: int, width_out: int, *, up: bool, switch: bool, ops: Any) -> None:
        super().__init__()
        self.up, self.switch = up, switch
        mapping = ops.Conv2d(width_in, width_out, 1)
        # The released files name the convolution by its place: before the halving, after the doubling.
        self.blocks = nn.ModuleList([nn.Identity(), mapping] if up else [mapping, nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        if not self.switch:
            return self.blocks[int(self.up)](x)
        height, width = x.shape[-2:]
        if self.up:
            return self.blocks[1](resize(x, (height * 2, width * 2)))
        return resize(self.blocks[0](x), (max(1, height // 2), max(1, width // 2)))


class StageC(Stack):
    """Stage C (Pernias et al. 2023, Wuerstchen, section 3; released as the 3.6B and the 1B model)."""

    config: StageCConfig

    def __init__(
        self, config: StageCConfig, *, ops: Any = nn, attention: Attention = scaled_dot_product_attention
    ) -> None:
        ops = layer_factory(ops)
        super().__init__(config, ops, attention)
        tokens = config.condition_channels * config.condition_tokens
        self.clip_txt_mapper = ops.Linear(config.clip_text, config.condition_channels)
        self.clip_txt_pooled_mapper = ops.Linear(config.clip_text_pooled, tokens)
        self.clip_img_mapper = ops.Linear(config.clip_img, tokens)

    def _down(self, level: int, ops: Any) -> nn.Module:
        before, after = self.config.levels[level - 1], self.config.levels[level]
        switch = self.config.switch_level[level - 1]
        return Rescale(before.width, UpDownBlock2d(before.width, after.width, up=False, switch=switch, ops=ops))

    def _up(self, level: int, ops: Any) -> nn.Module:
        before, after = self.config.levels[level], self.config.levels[level - 1]
        switch = self.config.switch_level[level - 1]
        return Rescale(before.width, UpDownBlock2d(before.width, after.width, up=True, switch=switch, ops=ops))

    def conditions(
        self,
        clip_text: Tensor,
        clip_text_pooled: Tensor,
        clip_img: Tensor,
        *,
        sca: Tensor | None = None,
        crp: Tensor | None = None,
    ) -> Conditions:
        """All that depends on the embeddings alone, for `denoise`. Arguments as in `forward`."""
        tokens = [
            self.clip_txt_mapper(clip_text),
            self._pooled_tokens(self.clip_txt_pooled_mapper, clip_text_pooled),
            self._pooled_tokens(self.clip_img_mapper, clip_img),
        ]
        return self._conditions(torch.cat(tokens, dim=1), {"sca": sca, "crp": crp}, None)

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        clip_text: Tensor,
        clip_text_pooled: Tensor,
        clip_img: Tensor,
        *,
        sca: Tensor | None = None,
        crp: Tensor | None = None,
        control: Residuals | None = None,
        guides: HighResGuides | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """The prediction [B, 16, h, w].

        Args:
            x: latents with noise [B, 16, h, w], any size.
            r: noise conditions [B] in [0, 1].
            clip_text: hidden states [B, n, clip_text], any n.
            clip_text_pooled: [B, 1, clip_text_pooled] or [B, clip_text_pooled].
            clip_img: one to several image embeddings [B, k, clip_img], or [B, clip_img]; zeros for none.
            sca, crp: extra timestep conditions [B]; 0 where not given.
            control: a residual [B, width, h', w'] or None for each residual block as they run; may be shorter.
            guides, features: high-res guides, and what `features` gave at a low resolution.
        """
        conditions = self.conditions(clip_text, clip_text_pooled, clip_img, sca=sca, crp=crp)
        if (guides is None) != (features is None):
            raise ValueError("guides need features, and features need guides")
        if guides is None or features is None:
            return self.denoise(x, r, conditions, control=control)
        acting = GuidedRun(guides, features, self.places()).after_attention(r)
        return self.denoise(x, r, conditions, control=control, after_attention=acting)

    def features(
        self, x: Tensor, r: Tensor, clip_text: Tensor, clip_text_pooled: Tensor, clip_img: Tensor
    ) -> tuple[Tensor, Features]:
        """The prediction, and the features that high-res guides read. Arguments as in `forward`."""
        conditions = self.conditions(clip_text, clip_text_pooled, clip_img)
        recorder = FeatureRecorder(self.places())
        prediction = self.denoise(x, r, conditions, after_attention=recorder.after_attention)
        return prediction, recorder.features()
