"""The nodes, one file for each capability, which never import each other. Only `host` uses ComfyUI's internals."""

from __future__ import annotations

from . import (
    adapters,
    caching,
    conditioning,
    controlnet,
    crop,
    decoding,
    editing,
    high_res,
    hints,
    images,
    instruct,
    ip_adapter,
    latents,
    loaders,
    prior,
    prompt_images,
    sampling,
    style,
    training,
)
from .host.messages import short_names

NODES = short_names(
    [
        *loaders.NODES,
        *conditioning.NODES,
        *prior.NODES,
        *latents.NODES,
        *images.NODES,
        *prompt_images.NODES,
        *sampling.NODES,
        *caching.NODES,
        *decoding.NODES,
        *editing.NODES,
        *adapters.NODES,
        *training.NODES,
        *controlnet.NODES,
        *high_res.NODES,
        *hints.NODES,
        *crop.NODES,
        *instruct.NODES,
        *style.NODES,
        *ip_adapter.NODES,
    ]
)
