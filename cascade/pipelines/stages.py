"""The steps of a job, each on one network: text, Stage C, Stage B, Stage A. They can be put together in other ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..conditioning import StageBInputs, StageCInputs, TextEmbedding, TextEncoder
from ..diffusion import Guidance, SeededNoise, sample
from ..models import StageA, StageB, StageC

OnStep = Callable[[int, int, Tensor], Any]
"""Called after step i (from 0) of n with the x0 predicted there; raise in it to stop."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How one stage is sampled; the released settings are STAGE_C_SETTINGS and STAGE_B_SETTINGS."""

    steps: int
    guidance: Guidance
    shift: float
    sampler: str = "ddpm"


STAGE_C_SETTINGS = SamplingSettings(steps=20, guidance=Guidance(scale=4.0, rho=0.7), shift=2.0)
STAGE_B_SETTINGS = SamplingSettings(steps=10, guidance=Guidance(scale=1.1, rho=0.7), shift=1.0)


def encode_prompts(model: nn.Module, prompts: Iterable[str]) -> dict[str, TextEmbedding]:
    """prompt -> embedding of batch 1, as long as the prompt needs.

    Each by itself, so that a prompt's embedding, and with it its picture, does not depend on its neighbours.
    """
    encoder = TextEncoder(model)
    return {prompt: encoder.encode([prompt]) for prompt in dict.fromkeys(prompts)}


def sample_stage_c(
    net: StageC,
    inputs: StageCInputs,
    unconditional: StageCInputs,
    *,
    size: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = STAGE_C_SETTINGS,
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents [B, *size] of 16 channels, one image for each of the B seeds."""
    cond, uncond = (net.conditions(**_placed(net, given.as_kwargs())) for given in (inputs, unconditional))
    return _sample(net, cond, uncond, SeededNoise(seeds, "stage_c"), size, settings, on_step)


def sample_stage_b(
    net: StageB,
    inputs: StageBInputs,
    unconditional: StageBInputs,
    *,
    size: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = STAGE_B_SETTINGS,
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents [B, *size] of 4 channels, one image for each of the B seeds."""
    height, width = size[-2:]
    cond, uncond = (
        net.conditions(**_placed(net, given.as_kwargs()), size=(height, width)) for given in (inputs, unconditional)
    )
    return _sample(net, cond, uncond, SeededNoise(seeds, "stage_b"), size, settings, on_step)


def decode(net: StageA, latents: Tensor) -> Tensor:
    """Pictures [B, 3, 4 h, 4 w] in [0, 1], float32, on the CPU, of latents [B, 4, h, w].

    One picture after another: decoding takes the most memory of all, and is no faster in a batch.
    """
    parameter = next(net.parameters())
    pictures = [net.decode(latent[None].to(parameter)).float().clamp(0, 1).cpu() for latent in latents]
    return torch.cat(pictures)


def _placed(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    parameter = next(net.parameters())
    return {name: tensor.to(parameter) for name, tensor in tensors.items()}


def _sample(
    net: Any,
    cond: Any,
    uncond: Any,
    noise: SeededNoise,
    size: Sequence[int],
    settings: SamplingSettings,
    on_step: OnStep | None,
) -> Tensor:
    return sample(
        net.denoise,
        noise.start(*size).to(next(net.parameters())),
        cond={"conditions": cond},
        uncond={"conditions": uncond},
        steps=settings.steps,
        sampler=settings.sampler,
        shift=settings.shift,
        guidance=settings.guidance,
        noise=noise,
        on_step=on_step,
    )
