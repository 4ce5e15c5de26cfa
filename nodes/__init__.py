"""The nodes, one file a capability. Only `host` knows ComfyUI's insides; the files beside it do not know each other."""

from __future__ import annotations

from . import adapters, conditioning, controlnet, crop, decoding, hints, images, latents, loaders, sampling, training

NODES = [
    *loaders.NODES,
    *conditioning.NODES,
    *latents.NODES,
    *images.NODES,
    *sampling.NODES,
    *decoding.NODES,
    *adapters.NODES,
    *training.NODES,
    *controlnet.NODES,
    *hints.NODES,
    *crop.NODES,
]
