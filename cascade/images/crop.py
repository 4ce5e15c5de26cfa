"""Crops the part of an image around a mask, to change it at full resolution, and puts it back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """A part of images, resized.

    Attributes:
        images: [B, 3, h, w].
        mask: [B or 1, 1, h, w], 1 where to fill.
        box: left, top, right, bottom in the whole images.
        whole: the images that it was taken from [B, 3, H, W].
        whole_mask: their mask [B or 1, 1, H, W], softened by `feather` pixels outwards.
    """

    images: Tensor
    mask: Tensor
    box: tuple[int, int, int, int]
    whole: Tensor
    whole_mask: Tensor

    def stitch(self, images: Tensor) -> Tensor:
        """The whole images [B, 3, H, W], with `images` [B, 3, h', w'] inside the mask; outside it they are unchanged,
        bit for bit."""
        left, top, right, bottom = self.box
        size = (bottom - top, right - left)
        images = images.to(self.whole)
        if images.shape[-2:] != size:
            # Shrinking averages; the overshoot of bicubic scaling beyond [0, 1] is clipped.
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        pasted = self.whole.expand(max(len(images), len(self.whole)), -1, -1, -1).clone()
        pasted[..., top:bottom, left:right] = images
        return composite(pasted, self.whole, self.whole_mask)


def crop_to_mask(
    images: Tensor, mask: Tensor, *, width: int, height: int, context: float = 0.5, feather: int = 0
) -> Crop:
    """The part of images [B, 3, H, W] around what a mask [B or 1, 1, H, W] marks, at width x height.

    The part has the proportions of width x height (as far as the images allow). It extends beyond the mask on each side
    by `context` times the mask's longer side. `feather` softens the mask outwards for `Crop.stitch`.

    Raises:
        ValueError: an empty mask, or one of another size than the images.
    """
    if mask.shape[-2:] != images.shape[-2:]:
        raise ValueError(f"the mask is {_size(mask)}, the image {_size(images)}: they must be of one size")
    marked = mask.amax(dim=(0, 1)) > 0
    if not bool(marked.any()):
        raise ValueError("the mask is empty: there is nothing to fill")
    rows, columns = torch.where(marked.any(dim=1))[0], torch.where(marked.any(dim=0))[0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    margin = round(context * max(bottom - top, right - left))
    need_h, need_w = bottom - top + 2 * margin, right - left + 2 * margin
    scale = max(need_h / height, need_w / width)
    left, right = _span(left, right, round(width * scale), images.shape[-1])
    top, bottom = _span(top, bottom, round(height * scale), images.shape[-2])
    part, part_mask = (each[..., top:bottom, left:right] for each in (images, mask))
    return Crop(
        images=F.interpolate(part, (height, width), mode="bicubic", antialias=True).clamp(0, 1),
        mask=F.interpolate(part_mask, (height, width), mode="bilinear", antialias=True),
        box=(left, top, right, bottom),
        whole=images,
        whole_mask=_within(soften(mask, feather), (left, top, right, bottom)),
    )


def soften(mask: Tensor, pixels: int) -> Tensor:
    """The mask [B, 1, H, W] with an edge that falls to 0 over so many pixels outside; inside it stays as it is."""
    if not pixels:
        return mask
    soft, step = mask, mask
    for _ in range(pixels):
        step = F.max_pool2d(step, 3, stride=1, padding=1)
        soft = soft + step
    return torch.maximum(mask, soft / (pixels + 1))


def composite(images: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """`images` where the mask is 1, `source` bit for bit where it is 0, in between a blend."""
    mask = mask.to(source)
    return torch.where(mask > 0, source + (images.to(source) - source) * mask, source)


def _within(mask: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    left, top, right, bottom = box
    kept = torch.zeros_like(mask)
    kept[..., top:bottom, left:right] = mask[..., top:bottom, left:right]
    return kept


def _span(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """A span of `length` around start to end, moved to fit [0, limit], shortened if it is too long."""
    length = min(length, limit)
    first = min(max((start + end - length) // 2, 0), limit - length)
    return first, first + length


def _size(images: Tensor) -> str:
    return f"{images.shape[-1]} x {images.shape[-2]}"
