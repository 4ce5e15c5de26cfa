"""Priors: CONDITIONINGs to a CLIP_VISION_OUTPUT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from torch import Tensor

from ...cascade.conditioning import TextEmbedding
from ...cascade.diffusion import Guidance
from ...cascade.errors import CascadeError
from ...cascade.models import Prior
from ...cascade.pipelines import PRIOR_SETTINGS, sample_prior
from . import imaging
from .files import read
from .folders import stamp
from .networks import LayerFactory


@dataclass(frozen=True)
class HostPrior:
    """The prior of a file, and the host's object that places it."""

    net: Prior
    patcher: Any

    @torch.no_grad()
    def embedding(self, positive: Any, negative: Any, seed: int, steps: int, cfg: float) -> Any:
        """A CLIP_VISION_OUTPUT of one embedding for the prompt. Raises CascadeError."""
        text, empty = _text(positive, "positive"), _text(negative, "negative")
        comfy.model_management.load_models_gpu([self.patcher])
        settings = replace(PRIOR_SETTINGS, steps=steps, guidance=Guidance(cfg=cfg, cfg_rescale=0.0))
        bar = comfy.utils.ProgressBar(steps)

        def on_step(i: int, n: int, x0: Tensor) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(i + 1, n)

        like = torch.empty(0, device=self.patcher.load_device)
        found = sample_prior(self.net, text, empty, seeds=[seed], settings=settings, like=like, on_step=on_step)
        return imaging.output_of(found[0].cpu())


def load_prior(path: Path) -> HostPrior:
    """The prior of a file; the one that was used last stays in memory. Raises CheckpointError."""
    return _loaded(path, stamp(path))


@lru_cache(maxsize=1)
def _loaded(path: Path, _stamp: tuple[object, ...]) -> HostPrior:
    with torch.inference_mode(False):
        config, state = read(path, "prior")
        with torch.device("meta"):
            net = Prior(config, ops=LayerFactory(comfy.ops.manual_cast, torch.float32))
        net.load_state_dict(state, assign=True)
        net.eval().requires_grad_(False)
    return HostPrior(
        net,
        comfy.model_patcher.CoreModelPatcher(
            net,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        ),
    )


def _text(conditioning: Any, name: str) -> TextEmbedding:
    """Of its first prompt. Raises CascadeError for a conditioning that has none."""
    if not conditioning or conditioning[0][1].get("pooled_output") is None:
        raise CascadeError(
            f"Prior (Stable Cascade): {name} has no pooled text: connect Text Encode (Stable Cascade), not an emptied "
            "conditioning."
        )
    hidden, extras = conditioning[0]
    return TextEmbedding(hidden[:1].float(), extras["pooled_output"][:1].reshape(1, 1, -1).float())
