"""Prompts to pictures: text, Stage C, Stage B, Stage A, one network in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..conditioning import ImageEncoder, StageBInputs, StageCInputs, TextEmbedding
from ..models import StageB, StageC
from .parts import Parts
from .sizes import latent_sizes
from .stages import (
    STAGE_B_SETTINGS,
    STAGE_C_SETTINGS,
    OnStep,
    SamplingSettings,
    decode,
    encode_prompts,
    sample_stage_b,
    sample_stage_c,
)

OnProgress = Callable[[str, int, int, Tensor], Any]
"""Called after step i (from 0) of n of "stage_c" or "stage_b" with the latents predicted there; raise in it to stop."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the pictures and how each stage is sampled; the defaults are the released ones."""

    width: int = 1024
    height: int = 1024
    stage_c: SamplingSettings = STAGE_C_SETTINGS
    stage_b: SamplingSettings = STAGE_B_SETTINGS


RELEASED = Settings()


@dataclass(frozen=True)
class Generated:
    """Pictures [B, 3, H, W] in [0, 1] (float32, on the CPU), and the latents of Stage C and Stage B they came from."""

    images: Tensor
    stage_c: Tensor
    stage_b: Tensor


@torch.no_grad()
def generate(
    parts: Parts,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative: str = "",
    variation_of: Tensor | None = None,
    settings: Settings = RELEASED,
    on_progress: OnProgress | None = None,
) -> Generated:
    """One picture for each prompt, from the seed at the same place; it is the same alone as among others.

    parts: "text_encoder", "stage_c", "stage_b", "stage_a"; for variations "image_encoder" too.
    negative: what to keep away; the empty prompt is the released unconditional one.
    variation_of: pictures [B, 3, H, W] in [0, 1] to vary, one for each prompt (which may be empty).

    Raises ValueError for prompts, seeds and pictures of unequal number, InvalidSize, MissingPart, or what loading a
    part raises.
    """
    counts = {len(prompts), len(seeds), len(prompts if variation_of is None else variation_of)}
    if len(counts) > 1 or not prompts:
        raise ValueError(f"each picture needs a prompt and a seed: {len(prompts)} prompts, {len(seeds)} seeds")
    latent_sizes(settings.height, settings.width)
    texts = parts.use("text_encoder", lambda net: encode_prompts(net, [*prompts, negative]))
    clip_img = None
    if variation_of is not None:
        clip_img = parts.use("image_encoder", lambda net: ImageEncoder(net).encode(variation_of))
    run = _Run([texts[prompt] for prompt in prompts], texts[negative], clip_img, seeds, settings, on_progress)
    effnet = parts.use("stage_c", run.stage_c)
    stage_b = parts.use("stage_b", lambda net: run.stage_b(net, effnet))
    images = parts.use("stage_a", lambda net: decode(net, stage_b))
    return Generated(images[..., : settings.height, : settings.width], effnet, stage_b)


@dataclass(frozen=True)
class _Run:
    """All that the stages of one call share."""

    texts: Sequence[TextEmbedding]
    negative: TextEmbedding
    clip_img: Tensor | None
    seeds: Sequence[int]
    settings: Settings
    on_progress: OnProgress | None

    def stage_c(self, net: StageC) -> Tensor:
        groups = self._groups()
        latents: dict[int, Tensor] = {}
        for number, group in enumerate(groups):
            inputs = self._stage_c_inputs(net, group)
            result = sample_stage_c(
                net,
                inputs,
                inputs.unconditional(self.negative),
                size=latent_sizes(self.settings.height, self.settings.width).stage_c,
                seeds=[self.seeds[i] for i in group],
                settings=self.settings.stage_c,
                on_step=self._on_step("stage_c", number, len(groups)),
            )
            latents.update(zip(group, result, strict=True))
        return torch.stack([latents[i] for i in range(len(self.texts))])

    def stage_b(self, net: StageB, effnet: Tensor) -> Tensor:
        inputs = StageBInputs(effnet, torch.cat([text.pooled for text in self.texts]))
        return sample_stage_b(
            net,
            inputs,
            inputs.unconditional(self.negative),
            size=latent_sizes(self.settings.height, self.settings.width).stage_b,
            seeds=self.seeds,
            settings=self.settings.stage_b,
            on_step=self._on_step("stage_b"),
        )

    def _groups(self) -> list[list[int]]:
        """Places of the pictures that Stage C can sample together: those with text of one length."""
        groups: dict[int, list[int]] = {}
        for i, text in enumerate(self.texts):
            groups.setdefault(text.hidden.shape[1], []).append(i)
        return list(groups.values())

    def _stage_c_inputs(self, net: StageC, group: list[int]) -> StageCInputs:
        text = TextEmbedding.join([self.texts[i] for i in group])
        if self.clip_img is None:
            return StageCInputs.without_image(text, net.config.clip_img)
        return StageCInputs.of(text, self.clip_img[group])

    def _on_step(self, stage: str, group: int = 0, groups: int = 1) -> OnStep | None:
        """A stage's steps reported as one run, even when it takes several."""
        report = self.on_progress
        if report is None:
            return None
        return lambda i, n, x0: report(stage, group * n + i, groups * n, x0)
