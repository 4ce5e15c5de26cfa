"""Checks of a node's inputs and results, with messages for users."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import server
import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...cascade.errors import CascadeError
from ...cascade.models import Process, StackConfig
from ...cascade.pipelines.memory import USABLE, check_fits

logger = logging.getLogger("cascade")

CURES = {
    "Stage C": "Load Stage C with weight_dtype bf16 or fp32, remove LoRAs one by one, or lower cfg.",
    "Stage B": "Load Stage B with weight_dtype bf16 or fp32, remove LoRAs one by one, or lower cfg.",
    "Stage A": "Load Stage A with weight_dtype fp32.",
    "The previewer": "Load the encoder and previewer with weight_dtype fp32.",
}

NO_STAGE_C = (
    "Stage B got no latent of Stage C, so the image would be nearly black: connect positive through ComfyUI's "
    "StableCascade_StageB_Conditioning, or use Sample Stage B (Stable Cascade)."
)

CHANNELS = {"Stage C": 16, "Stage B": 4}
MODELS = {"Stage C": "StableCascade_C", "Stage B": "StableCascade_B"}
VAES = {"Stage C": "Load Encoder and Previewer (Stable Cascade)", "Stage B": "Load Stage A (Stable Cascade)"}


def finite(samples: Tensor, stage: str, where: str = "result") -> Tensor:
    """The samples. Raises CascadeError where one of them is NaN or infinite."""
    if not bool(torch.isfinite(samples).all()):
        bad = int((~torch.isfinite(samples)).sum())
        raise CascadeError(
            f"{stage}'s {where} is not finite ({bad} of {samples.numel()} numbers are NaN or infinity; "
            f"the image would be black). {CURES[stage]}"
        )
    return samples


def latents(latent: dict[str, Any], stage: str) -> Tensor:
    """The samples of a latent of this stage [B, 16 or 4, h, w], finite. Raises CascadeError."""
    samples, channels = latent["samples"], CHANNELS[stage]
    if samples.ndim != 4 or 0 in samples.shape:
        shape = " x ".join(map(str, samples.shape))
        raise CascadeError(
            f"This takes {stage}'s latents, batch x {channels} x height x width with at least one of each; these are "
            f"{shape}. Connect those of Empty Latent, Encode Image or a sampler of Stable Cascade."
        )
    if samples.shape[1] != channels:
        raise CascadeError(
            f"This takes {stage}'s latents, which have {channels} channels; these have {samples.shape[1]}: "
            f"{_described(samples, stage)}."
        )
    return finite(samples, stage, "latent")


def channels(samples: Tensor, stage: str) -> None:
    """Latents in a sampler of ComfyUI or of another pack must be this stage's. Raises CascadeError."""
    if samples.shape[1] != CHANNELS[stage]:
        raise CascadeError(
            f"{stage} samples latents of {CHANNELS[stage]} channels; these have {samples.shape[1]}. Where a node "
            f"encodes images itself, such as a detailer or an upscaler, give it {VAES[stage]} as VAE."
        )


def _described(samples: Tensor, stage: str) -> str:
    """What latents that are not this stage's are."""
    if not samples.any():
        output = stage.lower().replace(" ", "_")
        return f"an empty latent of ComfyUI or of another stage. Connect {output} of Empty Latent (Stable Cascade)"
    other = next((name for name, count in CHANNELS.items() if count == samples.shape[1]), "another model")
    return f"they are those of {other}"


def affordable(shapes: Iterable[tuple[int, ...]], what: str) -> None:
    """Raises CascadeError if float32 tensors of these shapes would not fit into the machine's memory."""
    needed = 4 * sum(math.prod(shape) for shape in shapes)
    there = comfy.model_management.get_total_memory(torch.device("cpu"))
    if needed > there:
        raise CascadeError(
            f"{what} would take {needed / 1e9:,.0f} GB, and that is only the empty latents; this machine has "
            f"{there / 1e9:.0f} GB. Choose a smaller size or a smaller batch."
        )


def step_fits(patcher: Any, shape: Sequence[int]) -> None:
    """Raises CascadeError if a step of Stage C on latents [B, 16, h, w] of this shape would not fit into memory."""
    total = comfy.model_management.get_total_memory(patcher.load_device)
    check_fits("Stage C", shape, patcher.memory_required([*shape]), total, "a smaller batch")


def too_large(needed: float, device: torch.device) -> bool:
    """Whether so many bytes would not fit into a device's memory."""
    # Of all memory, not of the free part: the host unloads other models to make room.
    return needed > comfy.model_management.get_total_memory(device) * USABLE


def stage_of(latent: dict[str, Any]) -> str:
    """The stage whose latents these are, by their channels. Raises CascadeError for those of another model."""
    channels = latent["samples"].shape[1]
    stage = next((name for name, count in CHANNELS.items() if count == channels), None)
    if stage is None:
        raise CascadeError(
            f"This takes latents of Stage C (16 channels) or Stage B (4); these have {channels}: another model's."
        )
    return stage


def model(patcher: Any, stage: str) -> Any:
    """The model, which must be of this stage (ours or the host's own). Raises CascadeError."""
    if not isinstance(patcher.model, getattr(comfy.model_base, MODELS[stage])):
        found = next(
            (name for name, cls in MODELS.items() if isinstance(patcher.model, getattr(comfy.model_base, cls))),
            f"{type(patcher.model).__name__}, another model",
        )
        raise CascadeError(f"This takes a {stage} model; the one that is connected is {found}.")
    return patcher


def is_stage_b(patcher: Any) -> bool:
    """Whether a MODEL is a Stage B, ours or the host's own."""
    return isinstance(patcher.model, comfy.model_base.StableCascade_B)


def schedule(patcher: Any) -> Any:
    """The model's schedule of noise levels, which must be Stable Cascade's. Raises CascadeError."""
    found = patcher.get_model_object("model_sampling")
    if not isinstance(found, comfy.model_sampling.StableCascadeSampling):
        raise CascadeError(
            "A node such as ModelSamplingFlux has given this model the noise levels of another one: remove that node. "
            "Stable Cascade's shift is an input of its samplers, and of ModelSamplingStableCascade."
        )
    config = getattr(patcher.model.diffusion_model, "config", None)
    other = isinstance(config, StackConfig) and config.process != Process()
    if other and not hasattr(found, "diffusion"):
        raise CascadeError(
            "This model was trained for another target than the released ones, which ModelSamplingStableCascade does "
            "not know: remove that node. The shift is an input of Stable Cascade's own samplers."
        )
    return found


def conditioned(patcher: Any, positive: Any) -> None:
    """Raises CascadeError for a Stage B whose conditioning has no latent of Stage C."""
    with_latent = any("stable_cascade_prior" in extras for _, extras in positive)
    if is_stage_b(patcher) and not with_latent:
        raise CascadeError(NO_STAGE_C)


def patches(options: dict[str, Any]) -> None:
    """Checks what other nodes set in a model's transformer_options.

    Warns of what has no effect on Stable Cascade. Raises CascadeError for what would end in an error of its own.
    """
    if options.get("patches_replace", {}).get("attn1"):
        raise CascadeError(
            "A node such as SelfAttentionGuidance replaces attention in a way that does not fit Stable Cascade, whose "
            "image and text share it: remove that node. PerturbedAttentionGuidance works."
        )
    if idle := sorted(options.get("patches", {})):
        warn(
            f"A node set {', '.join(idle)}, as HyperTile, ToMe, NAG, FreeU and Deep Shrink do. That has no effect on "
            "Stable Cascade."
        )


def areas(conds: Mapping[str, Iterable[Mapping[str, Any]]], stage: str, shape: Sequence[int]) -> None:
    """Checks the areas of prompts against latents [B, c, h, w], in whose positions the host counts them.

    Warns of one that ends outside, and raises CascadeError for one that begins there.
    """
    height, width = shape[-2:]
    for entry in (entry for entries in conds.values() for entry in entries):
        area = entry.get("area", ())
        if len(area) != 4 or (area[0] + area[2] <= height and area[1] + area[3] <= width):
            continue
        rows, columns, top, left = area
        message = (
            f"A prompt has an area of {columns} x {rows} positions at {left}, {top}; {stage}'s latent is {width} x "
            f"{height}. ComfyUI's Conditioning (Set Area) divides pixels by 8, which does not fit Stable Cascade: use "
            "Conditioning (Set Area with Percentage)."
        )
        if top >= height or left >= width:
            raise CascadeError(message)
        warn(message)


def autoencoder(vae: Any, stage: str) -> Any:
    """The VAE, which must be that of this stage's latents (ours or the host's own). Raises CascadeError."""
    if vae.latent_channels != CHANNELS[stage]:
        wanted = {"Stage B": "Stage A", "Stage C": "the encoder and previewer"}[stage]
        raise CascadeError(
            f"{stage}'s latents have {CHANNELS[stage]} channels, this VAE's {vae.latent_channels}: connect {wanted}."
        )
    return vae


def warn(message: str) -> None:
    """Show a warning: in the log and, where the host can do it, on the node that is running."""
    logger.warning("%s", message)
    _show(message)


def report(message: str) -> None:
    """Say what was done, in the same places."""
    logger.info("%s", message)
    _show(message)


def _show(message: str) -> None:
    page, context = getattr(server.PromptServer, "instance", None), get_executing_context()
    if page is not None and context is not None and hasattr(page, "send_progress_text"):
        page.send_progress_text(message, context.node_id)
