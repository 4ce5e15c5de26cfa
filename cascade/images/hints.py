"""Hints for the released kinds of ControlNet: images, masks, latents and faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 32
"""Pixels along a side for each position of the encoder's and the ControlNets' output."""
MAX_FACES = 4


def inpaint_hint(images: Tensor, mask: Tensor) -> Tensor:
    """[B, 4, H, W] of images [B, 3, H, W] and masks [B or 1, 1, H, W], 1 where to fill: white there, the mask fourth.

    The nets were trained with masks of 0 and 1 only; other values are rounded.
    """
    mask = mask.to(images).round().expand(len(images), -1, -1, -1)
    return torch.cat([images * (1 - mask) + mask, mask], dim=1)


class Padded(NamedTuple):
    """Images [B, 3, H, W] with a margin, and the mask [1, 1, H, W] of what is to be generated."""

    images: Tensor
    mask: Tensor


def outpaint(images: Tensor, left: int, top: int, right: int, bottom: int, *, feather: int = 0) -> Padded:
    """Images [B, 3, h, w] with margins of so many pixels, filled with the image's border pixels.

    The mask is 1 in the margins and falls to 0 over `feather` pixels inside the image, along padded sides only.
    """
    height, width = images.shape[-2:]
    if min(left, top, right, bottom) < 0:
        raise ValueError(f"margins cannot be negative: left {left}, top {top}, right {right}, bottom {bottom}")
    rows = _margin(height, top, bottom, feather, images)
    columns = _margin(width, left, right, feather, images)
    padded = F.pad(images, (left, right, top, bottom), mode="replicate")
    return Padded(padded, torch.maximum(rows[:, None], columns[None, :])[None, None])


def _margin(length: int, before: int, after: int, feather: int, like: Tensor) -> Tensor:
    """The mask along one side [before + length + after]."""
    places = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    # Distance from the nearest padded end; `feather` where nothing is padded.
    far = torch.full_like(places, float(feather))
    distance = torch.minimum(places if before else far, length - places if after else far)
    inside = (1 - distance / feather).clamp(0, 1) if feather else torch.zeros_like(places)
    return F.pad(inside, (before, after), value=1.0)


def shrink(images: Tensor, factor: int = 2) -> Tensor:
    """Images [B, c, H, W] with sides divided by `factor`, by the nearest pixel as in the released training."""
    return F.interpolate(images, scale_factor=1 / factor, mode="nearest")


def enlarge(images: Tensor, factor: int = 2) -> Tensor:
    """[B, c, H, W] to `factor` times its sides, each number repeated."""
    return F.interpolate(images, scale_factor=factor, mode="nearest")


def super_resolution_hint(small: Tensor, encode: Callable[[Tensor], Tensor], factor: int = 2) -> Tensor:
    """[B, 16, h, w]: the encoder's latents of images whose size is that of the result / `factor`, repeated.

    Args:
        small: images [B, 3, H, W] in [0, 1].
        encode: images to latents, with sides divided by 32.
    """
    return enlarge(encode(small), factor)


def fit_hint(hint: Tensor, height: int, width: int, *, image: bool) -> Tensor:
    """A hint [B, c, H, W] as a ControlNet reads it for latents of height x width.

    It is cropped around its center to the latents' proportions. An image (`ControlNetConfig.reads_images`) is scaled to
    32 x 32 pixels for each position, bilinear; other hints to the latents' size rounded up to a multiple of 8, nearest,
    as in ComfyUI.
    """
    # The released sizes are rounded up, so proportions differ a little even where they should be the same.
    if image:
        return F.interpolate(_middle(hint, height, width), (height * GRID, width * GRID), mode="bilinear")
    height, width = -(-height // 8) * 8, -(-width // 8) * 8
    return F.interpolate(_middle(hint, height, width), (height, width), mode="nearest-exact")


def _middle(hint: Tensor, height: int, width: int) -> Tensor:
    """The largest part around a hint's center with these proportions."""
    rows, columns = hint.shape[-2:]
    left = max(0, round((columns - rows * width / height) / 2))
    top = max(0, round((rows - columns * height / width) / 2))
    return hint[..., top : rows - top, left : columns - left]


class Faces(NamedTuple):
    """The faces of one image: boxes [n, 4] (left, top, right, bottom, in pixels) and embeddings [n, 512]."""

    boxes: Tensor
    embeddings: Tensor


def identity_hint(faces: Sequence[Faces], height: int, width: int, *, limit: int = MAX_FACES) -> Tensor:
    """[B, 512, ceil(height / 32), ceil(width / 32)]: each face's embedding in its box, zeros elsewhere.

    The largest `limit` faces of an image are used; where boxes overlap, the larger face is in front. A face that is
    smaller than a position of the grid, or outside the image, gets the closest position.

    Raises:
        ValueError: boxes and embeddings of unequal number or width, or no face in any image.
    """
    if not any(len(each.boxes) for each in faces):
        raise ValueError("no face: there is neither a box nor an embedding in any image")
    channels = max(each.embeddings.shape[-1] for each in faces if len(each.boxes))
    rows, columns = -(-height // GRID), -(-width // GRID)
    hint = torch.zeros(len(faces), channels, rows, columns)
    for place, each in zip(hint, faces):
        if each.boxes.shape != (len(each.embeddings), 4):
            raise ValueError(
                f"each face has a box of 4 numbers and an embedding: {len(each.embeddings)} embeddings, boxes "
                f"{list(each.boxes.shape)}"
            )
        areas = (each.boxes[:, 2:] - each.boxes[:, :2]).clamp(min=0).prod(dim=1)
        for index in areas.argsort(descending=True)[:limit].flip(0).tolist():
            left, right = _fields(each.boxes[index, 0], each.boxes[index, 2], columns)
            top, bottom = _fields(each.boxes[index, 1], each.boxes[index, 3], rows)
            place[:, top:bottom, left:right] = each.embeddings[index].float().cpu()[:, None, None]
    return hint


def _fields(start: Tensor, end: Tensor, count: int) -> tuple[int, int]:
    """The positions of a grid of `count` between two coordinates in pixels, at least one."""
    first = min(max(round(float(start) / GRID), 0), count - 1)
    return first, min(max(round(float(end) / GRID), first + 1), count)
