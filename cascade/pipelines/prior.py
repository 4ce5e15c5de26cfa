"""Prompts to image embeddings, with a prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..conditioning import TextEmbedding
from ..diffusion import Guidance, OnStep, SamplingSettings, SeededNoise, sample
from ..errors import IncompatibleCheckpoint
from ..models import Prior
from .process import diffusion_of

PRIOR_SETTINGS = SamplingSettings(steps=20, guidance=Guidance(cfg=2.0, cfg_rescale=0.0), shift=1.0)


@torch.no_grad()
def sample_prior(
    net: Prior,
    text: TextEmbedding,
    negative: TextEmbedding,
    *,
    seeds: Sequence[int],
    settings: SamplingSettings = PRIOR_SETTINGS,
    like: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Image embeddings [B, 1, c], float32, of prompts [B] with a seed each: what an image of the prompt could have.

    negative: the embedding of the empty (or negative) prompt [1], for guidance. like: has the device and the type in
    which is sampled; by default the network's. on_step: as of `sample`.

    Raises IncompatibleCheckpoint for texts of another encoder.
    """
    check_text(net, text)
    like = next(net.parameters()) if like is None else like
    noise = SeededNoise(seeds, "prior")
    cond, uncond = (
        {"conditions": net.conditions(each.hidden.to(like), each.pooled.to(like))}
        for each in (text, negative.expand(len(seeds)))
    )
    network: Any = net.denoise
    found = sample(
        network,
        noise.start(net.config.clip_img).to(like),
        settings,
        cond=cond,
        uncond=uncond,
        noise=noise,
        diffusion=diffusion_of(net.config),
        on_step=on_step,
    )
    return net.embeddings(found.float())


def check_text(net: Prior, text: TextEmbedding) -> None:
    """Raises IncompatibleCheckpoint for texts of another encoder than the prior's."""
    config, found = net.config, (text.hidden.shape[-1], text.pooled.shape[-1])
    if found != (config.clip_text, config.clip_text_pooled):
        raise IncompatibleCheckpoint(
            f"this prior reads texts of {config.clip_text} and {config.clip_text_pooled} channels; the text encoder "
            f"gives {found[0]} and {found[1]}: use the prior and the text encoder of one cascade"
        )


@dataclass(frozen=True, kw_only=True)
class PriorPrompt:
    """A prior in a run: Stage C gets the image embedding that it makes of each prompt, and no text.

    net: the prior, for the encoders of the Stage C that runs.
    """

    net: Prior
    settings: SamplingSettings = PRIOR_SETTINGS

    def embeddings(self, texts: Sequence[TextEmbedding], negative: TextEmbedding, seeds: Sequence[int]) -> Tensor:
        """[B, 1, c]: one at a time, as prompts may differ in length. Raises as `sample_prior`."""
        found = [
            sample_prior(self.net, text, negative, seeds=[seed], settings=self.settings)
            for text, seed in zip(texts, seeds, strict=True)
        ]
        return torch.cat(found)
