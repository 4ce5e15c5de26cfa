"""The memory that a file's weights will take. It is known from the header, before anything is loaded."""

from __future__ import annotations

import comfy.model_management
import torch

from ...cascade.checkpoints.inspection import Inspection
from . import autoencoders, models

AUTOENCODERS = ("stage_a", "effnet", "previewer")


def weights(network: Inspection, choice: str) -> int:
    """Bytes of one network's weights.

    Args:
        choice: a loader's weight_dtype; one that the network's loader does not offer counts as default.
    """
    return network.parameters * comfy.model_management.dtype_size(_dtype(network, choice))


def _dtype(network: Inspection, choice: str) -> torch.dtype:
    """The number format in which the loader of this network puts it into memory."""
    stored = getattr(torch, network.dtype.partition(" and ")[0])
    if network.kind == "controlnet":
        return stored
    if network.kind in AUTOENCODERS:
        return autoencoders.dtype_of(choice if choice in autoencoders.DTYPES else "default")
    wanted = None if network.kind == "image_encoder" else models.DTYPES.get(choice)
    if wanted is not None:
        return wanted
    if network.kind in models.CONFIGS:
        known = models.CONFIGS[network.kind].supported_inference_dtypes
        return comfy.model_management.unet_dtype(
            model_params=network.parameters, supported_dtypes=list(known), weight_dtype=stored
        )
    return comfy.model_management.text_encoder_dtype(comfy.model_management.text_encoder_device())
