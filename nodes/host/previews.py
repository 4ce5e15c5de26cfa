"""Live previews of Stage C by its previewer network, in the place of the host's color matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.latent_formats
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from torch import Tensor

from ...cascade.checkpoints import load_model
from ...cascade.images.resize import COMPRESSION
from .preferences import preference

SIZE = 512
"""The longest side of a preview in pixels, unless the user's settings say another."""

UNCHANGED = torch.eye(3).tolist()
"""The color matrix for colors."""


class Previewer:
    """The previewer network in a file, loaded when a preview is wanted, and on the device of the latents meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.net: Any = None

    def __call__(self, x0: Tensor) -> Tensor:
        """The colors [1, 3, H, W] in [-1, 1] of the first of the latents [B, 16, h, w]."""
        with torch.inference_mode():
            if self.net is None:
                self.net = load_model(self.path, part="previewer", dtype=torch.float32)
            image = self.net.to(x0.device)(x0[:1].float())
            if max(image.shape[-2:]) > (longest := preference("PreviewSize", SIZE)):
                image = F.interpolate(image, scale_factor=longest / max(image.shape[-2:]), mode="area")
            return image * 2 - 1

    def release(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wraps a whole sampling run, after which the network leaves the device."""
        try:
            return executor(*args, **kwargs)
        finally:
            if self.net is not None:
                self.net.to("cpu")


class LatentC(comfy.latent_formats.SC_Prior):
    """Stage C's latents, with what the host reads for live previews: a function to colors and a color matrix.

    The host decides whether there are previews. They are the previewer's where there is one, except with the method
    latent2rgb, which stands for the color matrix.
    """

    spacial_downscale_ratio = int(COMPRESSION)
    previewer: Previewer | None = None

    @property
    def latent_rgb_factors(self) -> Any:
        return self._color_matrix if self._learned is None else UNCHANGED

    @latent_rgb_factors.setter
    def latent_rgb_factors(self, value: Any) -> None:
        self._color_matrix = value

    @property
    def latent_rgb_factors_reshape(self) -> Previewer | None:
        return self._learned

    @property
    def _learned(self) -> Previewer | None:
        return None if args.preview_method == LatentPreviewMethod.Latent2RGB else self.previewer
