"""Images beside the prompt, by an IP-Adapter, on a MODEL: the library's control of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cascade.checkpoints import load_model
from ...cascade.editing import AdapterTokens, IPAdapters
from ...cascade.errors import CascadeError
from ...cascade.models import StageC
from ...cascade.models.ip_adapter import check_encoder, check_stage_c
from ...cascade.pipelines.ip_adapter import keys_values_of
from . import attention, checks, imaging


def with_images(
    model: Any, clip_vision: Any, image: Tensor, path: Path, *, mask: Tensor | None = None, **options: Any
) -> Any:
    """The MODEL, whose runs follow the images of an IMAGE too, beside what they followed before.

    path: of the IP-Adapter. mask: a MASK of one image, where they count. options: of `AdapterTokens`.

    Raises CascadeError for a MODEL of another kind, for an adapter of another Stage C or image encoder, and for
    options that cannot be.
    """
    net = checks.model(model, "Stage C").model.diffusion_model
    if not isinstance(net, StageC):
        raise CascadeError(
            "An IP-Adapter needs a Stage C that Load Stage C (Stable Cascade) or Load Checkpoint (Stable Cascade) has "
            "loaded; this one was loaded by ComfyUI's own node."
        )
    features = imaging.encode_vision(clip_vision, imaging.from_image(image))["penultimate_hidden_states"]
    with torch.inference_mode(False), torch.no_grad():
        # On the CPU, once for an image: in all blocks together it is less than a step of Stage C.
        adapter = load_model(path, part="ip_adapter", dtype=torch.float32, check_finite=True)
        check_stage_c(adapter.config.blocks, net)
        check_encoder(adapter.config, features.shape[-1])
        keys_values = keys_values_of(adapter, features.clone())
    one = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])[:1].float().clamp(0, 1).cpu()
    tokens = AdapterTokens(keys_values=keys_values, mask=one, **options)
    if tokens.weight == 0:
        return model
    return attention.controlled_within(model, lambda inner: IPAdapters([tokens], within=inner))
