"""Filters make a ControlNet's hints from images: one part is computed once, the random part for each batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import ValidationError, validate_call
from torch import Tensor

from ..errors import InvalidConfig
from ..images import canny, fit_hint, inpaint_hint, normalize, shrink, super_resolution_hint
from .config import invalid
from .data import resize, to_halves, to_images, to_pixels


class Filter(Protocol):
    """Hints for images."""

    channels: int
    """Of the hint."""
    key: str
    """What `compute` depends on beside the images."""

    def compute(self, images: Tensor) -> np.ndarray:
        """What is kept of images [B, 3, H, H] in [0, 1]: one row each."""
        ...

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        """[B, channels, h, w] of such rows."""
        ...


class CannyFilter:
    """Edges at `size` pixels; `resize` as in `images.canny`."""

    channels = 1

    @validate_call
    def __init__(self, size: int, encoder: Any, grid: int, *, resize: int | None = 224) -> None:
        self.size, self.resize = size, resize
        self.key = f"canny-{size}-{resize}"

    def compute(self, images: Tensor) -> np.ndarray:
        edges = resize(canny(images, size=self.resize), self.size)
        return (edges[:, 0] * 255).round().byte().cpu().numpy()

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        return kept[:, None].float() / 255


class InpaintingFilter:
    """Images at `size` pixels with a random mask that covers a part of the area between the two of `threshold`.

    With probability `p_outpaint` the mask is the margin around a random part of the image, whatever its area.
    """

    channels = 4

    @validate_call
    def __init__(
        self,
        size: int,
        encoder: Any,
        grid: int,
        *,
        threshold: tuple[float, float] = (0.04, 0.4),
        p_outpaint: float = 0.4,
    ) -> None:
        self.size, self.threshold, self.p_outpaint = size, threshold, p_outpaint
        self.key = f"images-{size}"

    def compute(self, images: Tensor) -> np.ndarray:
        return to_pixels(resize(images, self.size))

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        masks = np.stack([self._mask(random) for _ in range(len(kept))])
        return inpaint_hint(to_images(kept), torch.from_numpy(masks)[:, None].to(kept.device))

    def _mask(self, random: np.random.Generator) -> np.ndarray:
        if random.random() < self.p_outpaint:
            return _margin(self.size, random)
        low, high = self.threshold
        area = random.uniform(low, high)
        return _blob(self.size, area, random)


def _margin(size: int, random: np.random.Generator) -> np.ndarray:
    """1 [size, size] beyond one to four random borders, each up to half the side away."""
    mask = np.zeros((size, size), np.float32)
    for turn in random.permutation(4)[: random.integers(1, 5)]:
        np.rot90(mask, turn)[: int(size * random.uniform(0.1, 0.5))] = 1
    return mask


def _blob(size: int, area: float, random: np.random.Generator) -> np.ndarray:
    """1 [size, size] in a rectangle or an ellipse of this part of the area; it may reach beyond the image."""
    aspect = np.exp(random.uniform(-0.5, 0.5))
    x, y = (np.arange(size) + 0.5) / size - random.uniform(0.15, 0.85, 2)[:, None]
    if random.random() < 0.5:
        far = np.maximum(np.abs(x)[None, :] / aspect, np.abs(y)[:, None] * aspect) * 2
        return (far < np.sqrt(area)).astype(np.float32)
    far = np.hypot(x[None, :] / aspect, y[:, None] * aspect)
    return (far < np.sqrt(area / np.pi)).astype(np.float32)


class SuperResolutionFilter:
    """The encoder's latents of images of `size` shrunk by `scale_factor`, repeated, on Stage C's grid."""

    @validate_call
    def __init__(self, size: int, encoder: Any, grid: int, *, scale_factor: float = 0.5) -> None:
        self.size, self.encoder, self.grid, self.factor = size, encoder, grid, round(1 / scale_factor)
        self.channels = encoder.config.latent_channels
        self.key = f"small-{size}-{self.factor}-{grid}"

    def compute(self, images: Tensor) -> np.ndarray:
        small = shrink(images, images.shape[-1] * self.factor // self.size)
        latents = super_resolution_hint(small, lambda x: self.encoder(normalize(x)), self.factor)
        latents = fit_hint(latents, self.grid, self.grid, image=False)
        return to_halves(latents)

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        return kept.float()


FILTERS: Mapping[str, Any] = {
    "canny": CannyFilter,
    "inpainting": InpaintingFilter,
    "super_resolution": SuperResolutionFilter,
}
"""Name -> (size of the hint, encoder, side of Stage C's latents, **params) -> filter."""

REFERENCE_NAMES = {"CannyFilter": "canny", "InpaintFilter": "inpainting", "SREffnetFilter": "super_resolution"}
REFERENCE_PARAMS = {"thresold": "threshold"}
"""Names in the released training's files and ours, where they differ."""


def build_filter(name: str, params: Mapping[str, Any], size: int, encoder: Any, grid: int) -> Filter:
    """A filter by its name, ours or the reference's. Raises InvalidConfig."""
    name = REFERENCE_NAMES.get(name, name)
    if name not in FILTERS:
        raise InvalidConfig(f"controlnet: filter is {name!r}; known filters: {', '.join(FILTERS)}")
    try:
        return FILTERS[name](
            size, encoder, grid, **{REFERENCE_PARAMS.get(key, key): value for key, value in params.items()}
        )
    except ValidationError as error:
        raise invalid("controlnet: filter_params", error) from error
