"""What lies beside an image in addition to its text: a hint, a mask of the loss, faces. It is cut as the image is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InvalidImage
from ..images import open_image
from ..images.pillow import FILE_BYTES
from .buckets import FACTOR, Shown, Size, show_alike, upright
from .listing import FACES, HINT, MASK, Member, Sample

MASK_PIXELS = 8
"""Of an image, along each side, for a number of its mask."""
STORED_FACES = 8
"""Of an image, the largest ones."""
EMBEDDING = 512
"""Numbers of a face's embedding."""
FACES_BYTES = 1 << 20
ALIKE = 0.03
"""How much the shape of a hint or a mask may differ from its image's, as a part."""


class Beside(NamedTuple):
    """What is read beside each image.

    hint, faces: pixels a side of a square image's, None for none; gray: the hint has one channel. mask: of the loss.
    """

    hint: int | None = None
    gray: bool = False
    mask: bool = False
    faces: int | None = None


NOTHING = Beside()


class Found(NamedTuple):
    """arrays: uint8 `hint` [h, w, 3] or [h, w], uint8 `mask` [h, w], float32 `faces` [8, 2 + 4 + 512]: height and width
    of a hint of them, box in its pixels (left, top, right, bottom) and embedding; zeros where there is none. digest: of
    the files."""

    arrays: Mapping[str, np.ndarray]
    digest: bytes


def read_beside(sample: Sample, wanted: Beside, whole: Size, size: Size, square: int, shown: Shown) -> Found:
    """What is wanted of an image that is `whole`, of which `shown` at `size` is trained on; `square` pixels are the
    side of a square one. Raises InvalidImage, OSError."""
    arrays: dict[str, np.ndarray] = {}
    digest = hashlib.sha256()
    if wanted.hint is not None:
        data = _bytes_of(sample.hint, HINT, ".png")
        digest.update(data)
        arrays[HINT] = _cut(data, HINT, whole, hint_size(size, square, wanted.hint), shown, wanted.gray)
    if wanted.mask:
        small = Size(size.height // MASK_PIXELS, size.width // MASK_PIXELS)
        if sample.mask is None:
            arrays[MASK] = np.full(small, 255, np.uint8)
        else:
            data = sample.mask.read(FILE_BYTES)
            digest.update(data)
            arrays[MASK] = _cut(data, MASK, whole, small, shown, gray=True)
    if wanted.faces is not None:
        data = _bytes_of(sample.faces, FACES, ".json", FACES_BYTES)
        digest.update(data)
        arrays[FACES] = _placed(_faces(data), whole, hint_size(size, square, wanted.faces), shown)
    return Found(arrays, digest.digest() if arrays else b"")


def hint_size(size: Size, square: int, wanted: int) -> Size:
    """Of the hint of an image of `size`, where those of squares of `square` pixels have `wanted`; steps of 32."""
    if size.height == size.width:
        return Size(wanted, wanted)
    height, width = (max(FACTOR, round(side * wanted / square / FACTOR) * FACTOR) for side in size)
    return Size(height, width)


def _bytes_of(member: Member | None, mark: str, ending: str, most: int = FILE_BYTES) -> bytes:
    if member is None:
        raise InvalidImage(f"it has no {mark}: a file NAME.{mark}{ending} is expected beside NAME.png")
    return member.read(most)


def _cut(data: bytes, mark: str, whole: Size, size: Size, shown: Shown, gray: bool) -> np.ndarray:
    try:
        with open_image(data) as image:
            found = upright(image)
    except InvalidImage as error:
        raise InvalidImage(f"its {mark}: {error}") from error
    if abs(found.width / found.height / (whole.width / whole.height) - 1) > ALIKE:
        raise InvalidImage(
            f"its {mark} has {found.width} x {found.height} pixels, which is another shape than that of the image, "
            f"{whole.width} x {whole.height}"
        )
    # A mask is averaged, so that what is wholly outside stays so.
    resample = Image.Resampling.BOX if mark == MASK else Image.Resampling.LANCZOS
    return show_alike(found.convert("L") if gray else found, size, shown, resample)


def _faces(data: bytes) -> list[tuple[list[float], list[float]]]:
    """(box, embedding) of each face. Raises InvalidImage."""
    try:
        found: Any = json.loads(data)
        faces = [(list(map(float, each["box"])), list(map(float, each["embedding"]))) for each in found]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise InvalidImage(
            'its faces: a list of {"box": [left, top, right, bottom], "embedding": [512 numbers]} is expected'
        ) from error
    for box, embedding in faces:
        if len(box) != 4 or len(embedding) != EMBEDDING or not np.isfinite([*box, *embedding]).all():
            raise InvalidImage(f"its faces: one has a box of {len(box)} and an embedding of {len(embedding)} numbers")
    return faces


def _placed(faces: Sequence[tuple[list[float], list[float]]], whole: Size, size: Size, shown: Shown) -> np.ndarray:
    """[STORED_FACES, 2 + 4 + EMBEDDING]: the largest faces that are inside what is shown, embeddings of length 1."""
    height = min(whole.height, whole.width * size.height / size.width)
    width = min(whole.width, whole.height * size.width / size.height)
    left, top = (whole.width - width) * shown.right, (whole.height - height) * shown.down
    limits = np.array([size.width, size.height] * 2, np.float64)
    found = []
    for box, embedding in faces:
        moved = (np.array(box) - [left, top, left, top]) * (size.width / width)
        inside = np.clip(moved, 0, limits)
        area = float((inside[2:] - inside[:2]).clip(0).prod())
        if area > 0:
            unit = np.array(embedding) / max(float(np.linalg.norm(embedding)), 1e-12)
            found.append((area, np.concatenate([inside, unit])))
    rows = [row for _, row in sorted(found, key=lambda pair: -pair[0])[:STORED_FACES]]
    made = np.zeros((STORED_FACES, 2 + 4 + EMBEDDING), np.float32)
    made[:, :2] = size
    if rows:
        made[: len(rows), 2:] = rows
    return made
