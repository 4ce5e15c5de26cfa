"""What happens between steps: an image of the previewer network, and a check whether the user stopped the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from PIL import Image
from torch import Tensor

from ...cascade.checkpoints import load_model
from ...cascade.images import to_pillow
from .compat import replace_callback

Callback = Callable[..., Any]


class Watch:
    """Wraps a whole sampling run of a MODEL, whichever sampler it is.

    Args:
        previewer: file of the previewer network; None for the host's own previews only.
    """

    def __init__(self, previewer: Path | None) -> None:
        self.path = previewer
        self.net: Any = None

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = replace_callback(args, kwargs, self._watching)
        try:
            return executor(*args, **kwargs)
        finally:
            if self.net is not None:
                self.net.to("cpu")

    def _watching(self, callback: Callback | None) -> Callback:
        bars: list[Any] = []

        def watching(step: int, x0: Tensor, x: Tensor, total_steps: int, *args: Any, **kwargs: Any) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if callback is not None:
                callback(step, x0, x, total_steps, *args, **kwargs)
            if self.path is not None:
                bars[:] = bars or [comfy.utils.ProgressBar(total_steps)]
                image = ("JPEG", self.image(x0), latent_preview.MAX_PREVIEW_RESOLUTION)
                bars[0].update_absolute(step + 1, total_steps, image)

        return watching

    def image(self, x0: Tensor) -> Image.Image:
        """The first image of latents [B, 16, h, w]."""
        with torch.inference_mode():
            net = self._network().to(x0.device)
            return to_pillow(net(x0[:1].float())[0])

    def _network(self) -> Any:
        if self.net is None and self.path is not None:
            self.net = load_model(self.path, part="previewer", dtype=torch.float32)
        return self.net
