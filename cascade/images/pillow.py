"""Pillow images and tensors; image files read within bounds."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InvalidImage

FILE_BYTES = 1 << 28
"""Of an image file, which is read whole; it may be sparse, and take no room on the disk."""
PIXELS = 8192 * 8192
"""Of an image that is decoded: 0.3 GB, and three times that while it is turned and resized. Pillow's own limit, which
belongs to the whole process, allows 2.3 GB from a file of 500 kB."""
SIDE = 65_535
"""The most pixels a side, as in a JPEG: Pillow keeps a row of one pixel in 24 bytes, and works a row at a time."""
TILES = 100_000
"""Strips or tiles of an image, each of which is decoded for itself: 4 MB of strips of 8 pixels took more than 30 s."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What a file may hold, whatever its ending says. Of others Pillow would run a program, as Ghostscript for EPS."""

# What Pillow raises for files that are damaged, or no images at all.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def read_file(path: Path) -> bytes:
    """The content of an image file. Raises InvalidImage for what is none or too large, OSError."""
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        raise InvalidImage(f"{path}: this is no file")
    if path.stat().st_size > FILE_BYTES:
        raise InvalidImage(f"{path}: more than {FILE_BYTES >> 20} MB: this is no image")
    return path.read_bytes()


@contextmanager
def open_image(content: bytes, size: int | None = None) -> Iterator[Image.Image]:
    """The image in a file's content, not decoded yet.

    size: a JPEG may be decoded smaller, with at least so many pixels a side, which is much faster.

    Raises InvalidImage, also for what its decoding in the block raises: no image, damaged, or too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            whole = image.size
            if size is not None:
                image.draft("RGB", (size, size))
            # A progressive JPEG is in memory at its full size all the same.
            width, height = whole if image.info.get("progressive") else image.size
            if width * height > PIXELS:
                raise InvalidImage(f"{width} x {height} pixels; at most {PIXELS // 10**6} million are read")
            if (count := len(getattr(image, "tile", ()))) > TILES:
                raise InvalidImage(f"{count:,} strips or tiles; at most {TILES:,} are read")
            if max(whole) > SIDE:
                raise InvalidImage(f"{whole[0]} x {whole[1]} pixels; at most {SIDE:,} a side are read")
            yield image
    except UnidentifiedImageError as error:
        raise InvalidImage("no image, or not of a known format") from error
    except _UNREADABLE as error:
        raise InvalidImage(" ".join(str(error).split())[:200] or type(error).__name__) from error


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def from_pillow(image: Image.Image) -> Tensor:
    """[1, 3, H, W] in [0, 1]; rotated by its EXIF orientation, without alpha, in 16 bits if it has them."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow clips values above 255 when it converts these modes.
        gray = torch.from_numpy(np.array(upright).astype(np.float32)) / 65535
        return gray.clamp(0, 1).expand(1, 3, *gray.shape).clone()
    return torch.from_numpy(np.array(upright.convert("RGB"))).movedim(-1, 0)[None].float().div_(255)


def to_pillow(image: Tensor) -> Image.Image:
    """An image of [3, H, W]; values outside [0, 1] are clipped."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).cpu().numpy())
