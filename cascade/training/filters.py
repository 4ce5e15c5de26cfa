"""Filters make a ControlNet's hints from images, or read what lies beside them: one part is computed once, the random
part for each batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError, validate_call
from scipy import ndimage
from torch import Tensor

from ..errors import InvalidConfig
from ..images import (
    Faces,
    canny,
    fit_hint,
    identity_hint,
    inpaint_hint,
    normalize,
    shrink,
    sketch,
    super_resolution_hint,
)
from ..images.hints import GRID
from .beside import EMBEDDING, NOTHING, Beside, hint_size
from .buckets import Size
from .config import Count, Share, invalid
from .data import resize, to_halves, to_images, to_pixels
from .listing import FACES, HINT

COMPUTED = "hints"
"""The array of what a filter computed."""


class Filter:
    """Hints for images."""

    channels: int
    """Of the hint."""
    key: str
    """What `compute` depends on beside the images."""
    beside: Beside = NOTHING
    """What is read beside the images."""
    kept: str = COMPUTED
    """The array that `hint` gets: what `compute` made, or what was read beside the images."""

    def compute(self, images: Tensor) -> np.ndarray:
        """What is kept of images [B, 3, H, W] in [0, 1]: one row each. Not called where it is read beside them."""
        raise NotImplementedError

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        """[B, channels, h, w] of such rows."""
        raise NotImplementedError


def scaled_hint(images: Tensor, size: int) -> tuple[int, int]:
    """(h, w) of the hints of images [B, C, H, W], of which square ones have hints of `size`."""
    height, width = images.shape[-2:]
    return hint_size(Size(height, width), round((height * width) ** 0.5), size)


class _LinesFilter(Filter):
    """Hints of one channel at `size` pixels, kept as whole numbers."""

    channels = 1
    size: int

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        return kept[:, None].float() / 255

    def _kept(self, lines: Tensor) -> np.ndarray:
        """uint8 [B, h, w] of lines [B, 1, H, W] in [0, 1]."""
        scaled = resize(lines, scaled_hint(lines, self.size))
        return (scaled[:, 0] * 255).round().byte().cpu().numpy()


class CannyFilter(_LinesFilter):
    """Edges at `size` pixels; `resize` as in `images.canny`."""

    @validate_call
    def __init__(self, size: int, encoder: Any, grid: int, *, resize: int | None = 224) -> None:
        self.size, self.resize = size, resize
        self.key = f"canny-{size}-{resize}"

    def compute(self, images: Tensor) -> np.ndarray:
        return self._kept(canny(images, size=self.resize))


class SketchFilter(_LinesFilter):
    """Lines at `size` pixels; see `images.sketch`."""

    @validate_call
    def __init__(self, size: int, encoder: Any, grid: int) -> None:
        self.size = size
        self.key = f"sketch-{size}"

    def compute(self, images: Tensor) -> np.ndarray:
        return self._kept(sketch(images))


class InpaintingFilter(Filter):
    """Images at `size` pixels with a random mask that covers a part of the area between the two of `threshold`.

    `masks`: shapes are rectangles and ellipses anywhere; saliency is what draws the eye, by its spectrum.
    With probability `p_outpaint` the mask is, of shapes, the margin around a random part of the image, whatever its
    area; of saliency, the rest of the image.
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
        masks: Literal["shapes", "saliency"] = "shapes",
    ) -> None:
        self.size, self.threshold, self.p_outpaint, self.masks = size, threshold, p_outpaint, masks
        self.key = f"images-{size}"

    def compute(self, images: Tensor) -> np.ndarray:
        return to_pixels(resize(images, scaled_hint(images, self.size)))

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        masks = np.stack([self._mask(image, random) for image in kept])
        return inpaint_hint(to_images(kept), torch.from_numpy(masks)[:, None].to(kept.device))

    def _mask(self, image: Tensor, random: np.random.Generator) -> np.ndarray:
        """1 [h, w] where to fill an image [h, w, 3]."""
        height, width = image.shape[:2]
        outside = random.random() < self.p_outpaint
        if outside and self.masks == "shapes":
            return _margin(height, width, random)
        area = random.uniform(*self.threshold)
        if self.masks == "shapes":
            return _blob(height, width, area, random)
        found = salient(image.cpu().numpy(), area)
        return 1 - found if outside else found


def _margin(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """1 [height, width] beyond one to four random borders, each up to half the side away."""
    mask = np.zeros((height, width), np.float32)
    for turn in random.permutation(4)[: random.integers(1, 5)]:
        turned = np.rot90(mask, turn)
        turned[: int(len(turned) * random.uniform(0.1, 0.5))] = 1
    return mask


SALIENCY_PIXELS = 64
"""A side at which what draws the eye is looked for, as in the paper."""


def salient(image: np.ndarray, area: float) -> np.ndarray:
    """1 [h, w] in the part of an image uint8 [h, w, 3] that draws the eye, of about this part of the area: where the
    spectrum differs from that of most images (Hou and Zhang 2007, "Saliency detection: a spectral residual approach").
    """
    pixels = torch.from_numpy(image).float().mean(dim=-1)[None, None]
    spectrum = np.fft.fft2(resize(pixels, SALIENCY_PIXELS)[0, 0].numpy())
    amplitude = np.log(np.abs(spectrum) + 1e-6)
    residual = amplitude - ndimage.uniform_filter(amplitude, 3, mode="wrap")
    found = ndimage.gaussian_filter(np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2, 3.0)
    whole = resize(torch.from_numpy(found).float()[None, None], image.shape[:2])[0, 0].numpy()
    return (whole > np.quantile(whole, 1 - area)).astype(np.float32)


def _blob(height: int, width: int, area: float, random: np.random.Generator) -> np.ndarray:
    """1 [height, width] in a rectangle or an ellipse of this part of the area; it may reach beyond the image."""
    aspect = np.exp(random.uniform(-0.5, 0.5))
    center = random.uniform(0.15, 0.85, 2)
    x, y = ((np.arange(side) + 0.5) / side - at for side, at in zip((width, height), center, strict=True))
    if random.random() < 0.5:
        far = np.maximum(np.abs(x)[None, :] / aspect, np.abs(y)[:, None] * aspect) * 2
        return (far < np.sqrt(area)).astype(np.float32)
    far = np.hypot(x[None, :] / aspect, y[:, None] * aspect)
    return (far < np.sqrt(area / np.pi)).astype(np.float32)


class SuperResolutionFilter(Filter):
    """The encoder's latents of images of `size` shrunk by `scale_factor`, repeated, on Stage C's grid."""

    @validate_call
    def __init__(self, size: int, encoder: Any, grid: int, *, scale_factor: float = 0.5) -> None:
        self.size, self.encoder, self.grid, self.factor = size, encoder, grid, round(1 / scale_factor)
        self.channels = encoder.config.latent_channels
        self.key = f"small-{size}-{self.factor}-{grid}"

    def compute(self, images: Tensor) -> np.ndarray:
        small = shrink(images, images.shape[-1] * self.factor // scaled_hint(images, self.size)[1])
        latents = super_resolution_hint(small, lambda x: self.encoder(normalize(x)), self.factor)
        height, width = scaled_hint(images, self.grid * GRID)
        latents = fit_hint(latents, height // GRID, width // GRID, image=False)
        return to_halves(latents)

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        return kept.float()


class StoredFilter(Filter):
    """The image `owl.hint.png` beside `owl.png`, of 1 or 3 channels: depth, a pose, a sketch, a QR code."""

    kept = HINT

    @validate_call
    def __init__(self, size: int, encoder: Any, grid: int, *, channels: Literal[1, 3] = 3) -> None:
        self.channels = channels
        self.beside = Beside(hint=size, gray=channels == 1)
        self.key = f"hint-{size}-{channels}"

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        return kept[:, None].float() / 255 if self.channels == 1 else to_images(kept)


class IdentityFilter(Filter):
    """The faces of `owl.faces.json` beside `owl.png`, each in its box; at most `max_faces` of them.

    With probability `p_drop` a face is left out; with `p_full` the only face of an image fills all of the hint.
    """

    channels = EMBEDDING
    kept = FACES

    @validate_call
    def __init__(
        self, size: int, encoder: Any, grid: int, *, max_faces: Count = 4, p_drop: Share = 0.05, p_full: Share = 0.3
    ) -> None:
        self.limit, self.p_drop, self.p_full = max_faces, p_drop, p_full
        self.beside = Beside(faces=size)
        self.key = f"faces-{size}"

    def hint(self, kept: Tensor, random: np.random.Generator) -> Tensor:
        height, width = (int(side) for side in kept[0, 0, :2])
        found = [self._faces(rows, height, width, random) for rows in kept.cpu()]
        if not any(len(each.boxes) for each in found):
            return kept.new_zeros(len(kept), EMBEDDING, -(-height // GRID), -(-width // GRID))
        return identity_hint(found, height, width, limit=self.limit).to(kept.device)

    def _faces(self, rows: Tensor, height: int, width: int, random: np.random.Generator) -> Faces:
        """Those of an image [8, 2 + 4 + 512] that are shown this time."""
        there = rows[rows[:, 2:].any(dim=1)][: self.limit]
        shown = there[torch.from_numpy(random.random(len(there)) >= self.p_drop)]
        boxes = shown[:, 2:6].clone()
        if len(there) == 1 and random.random() < self.p_full:
            boxes[:] = torch.tensor([0, 0, width, height])
        return Faces(boxes, shown[:, 6:])


FILTERS: Mapping[str, Any] = {
    "canny": CannyFilter,
    "sketch": SketchFilter,
    "inpainting": InpaintingFilter,
    "super_resolution": SuperResolutionFilter,
    "stored": StoredFilter,
    "identity": IdentityFilter,
}
"""Name -> (size of the hint, encoder, side of Stage C's latents, **params) -> filter."""

REFERENCE_NAMES = {
    "CannyFilter": "canny",
    "InpaintFilter": "inpainting",
    "SREffnetFilter": "super_resolution",
    "IdentityFilter": "identity",
}
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
