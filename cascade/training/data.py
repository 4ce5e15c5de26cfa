"""Images to train on, the order in which they are seen, and what is computed once from them and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tokenize
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor

from ..errors import InvalidConfig, one_line
from ..files import open_regular, remove_abandoned, write_atomically
from .config import Count, PathFromRoot, Pixels, Seed, Settings
from .folders import FolderEdits, FolderImages, OnImage
from .lock import writing

log = logging.getLogger("cascade")

CHUNK = 256
CAPTIONS_FILE = "captions.json"
OnChunk = Callable[[int, int], None]


class ImageSource(Protocol):
    """A fixed set of images with captions, all of one size."""

    size: int
    name: str
    """Names the content: two sources of one name hold the same images."""

    def __len__(self) -> int: ...

    def read(self, start: int, count: int) -> tuple[np.ndarray, list[str]]:
        """Images start to start + count as uint8 [n, size, size, 3], and their captions."""
        ...


class ImageSettings(Settings):
    """Which images, as squares of `size` pixels.

    `source` is a name of IMAGE_SOURCES. `folder` are those at `path`: a folder with captions beside the images, or
    webdataset tars; `caption` is for images that have none. `edits` are pairs of images, before and after, with an
    instruction each, which lie there likewise. A source that makes its images makes `count` from `seed`.
    """

    source: str = "folder"
    path: PathFromRoot | None = None
    caption: str | None = None
    count: Count | None = None
    seed: Seed = 1
    size: Pixels = 256

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source not in IMAGE_SOURCES:
            raise ValueError(f"there is no image source {source!r}; there are {', '.join(IMAGE_SOURCES)}")
        return source


def _open_folder(settings: ImageSettings, on_image: OnImage | None = None) -> ImageSource:
    if settings.path is None:
        raise InvalidConfig("images: the source folder needs a path")
    return FolderImages(settings.path, settings.size, settings.caption, on_image)


def _open_edits(settings: ImageSettings) -> ImageSource:
    if settings.path is None:
        raise InvalidConfig("images: the source edits needs a path")
    return FolderEdits(settings.path, settings.size)


IMAGE_SOURCES: dict[str, Callable[[ImageSettings], ImageSource]] = {"folder": _open_folder, "edits": _open_edits}
"""Name -> what opens such images. Whoever has images of another kind adds them here before settings are read."""


def open_images(settings: ImageSettings, on_image: OnImage | None = None) -> ImageSource:
    """Raises InvalidConfig for settings that the source lacks, and for a folder without images.

    `on_image` is called for each file of a folder that is looked at; an exception in it ends the work.
    """
    if settings.source == "folder":
        return _open_folder(settings, on_image)
    return IMAGE_SOURCES[settings.source](settings)


class Cache(NamedTuple):
    """Arrays with one row an image, memory-mapped from disk, the images' captions, and the name of their content."""

    arrays: dict[str, np.ndarray]
    captions: list[str]
    source: str

    def take(self, name: str, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Some rows of an array as a tensor of the array's own type."""
        return torch.from_numpy(np.ascontiguousarray(self.arrays[name][rows])).to(device)


Compute = Callable[[np.ndarray], dict[str, np.ndarray]]


def cached(
    folder: Path, kind: str, source: ImageSource, compute: Compute, *, key: str = "", on_chunk: OnChunk | None = None
) -> Cache:
    """What `compute` (pixels uint8 [n, s, s, 3] -> arrays with n rows) makes of all images, from disk if there.

    `key` names what else `compute` depends on (the encoder's weights, sizes). A cache that is there is complete; one
    that was damaged since is made again.

    Raises NotWritable.
    """
    digest = hashlib.sha256(json.dumps([kind, source.name, key]).encode()).hexdigest()[:16]
    place = folder / f"{kind}-{digest}"
    try:
        if place.exists():
            return _read(place, source)
    except _DAMAGED as error:
        log.warning("%s: this cache is damaged and made again: %s", place, one_line(str(error)))
        with writing(folder):
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    with writing(folder):
        _build(place, source, compute, on_chunk)
    return _read(place, source)


# What np.load and json raise for damaged files; numpy reads its headers as Python's source.
_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError),
    *(SyntaxError, RecursionError, tokenize.TokenError),
)


def _read(place: Path, source: ImageSource) -> Cache:
    """Raises one of _DAMAGED where something is not there, cannot be read, or has another length."""
    with open_regular(place / CAPTIONS_FILE) as file:
        captions = json.loads(file.read())
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{CAPTIONS_FILE} is no list of texts")
    "".join(captions).encode()  # a half of a surrogate pair, which JSON can hold, is no text
    files = sorted(place.glob("*.npy"))
    if pipes := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{pipes[0]} is no file")
    arrays: dict[str, Any] = {file.stem: np.load(file, mmap_mode="r") for file in files}
    for name, array in arrays.items():
        torch.from_numpy(array[:1].copy())  # numpy has types that torch does not
        if array.offset + array.nbytes != (place / f"{name}.npy").stat().st_size:
            raise ValueError(f"{name} has another size than its header says")
    lengths = {CAPTIONS_FILE: len(captions)} | {name: len(array) for name, array in arrays.items()}
    if wrong := [f"{name} has {count} rows" for name, count in lengths.items() if count != len(source)]:
        raise ValueError(f"there are {len(source)} images, {' and '.join(wrong)}")
    if not arrays:
        raise ValueError("it has no arrays")
    return Cache(arrays, captions, source.name)


def _build(place: Path, source: ImageSource, compute: Compute, on_chunk: OnChunk | None) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        captions: list[str] = []
        total = len(source)
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            for start in range(0, total, CHUNK):
                images, texts = source.read(start, min(CHUNK, total - start))
                captions += texts
                for name, rows in compute(images).items():
                    if name not in files:
                        files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
                        np.lib.format.write_array_header_1_0(
                            files[name],
                            {
                                "descr": np.lib.format.dtype_to_descr(rows.dtype),
                                "fortran_order": False,
                                "shape": (total, *rows.shape[1:]),
                            },
                        )
                    # Not mapped: where the disk is full, writing to mapped memory ends the process.
                    files[name].write(np.ascontiguousarray(rows).data)
                if on_chunk is not None:
                    on_chunk(min(start + CHUNK, total), total)
        (folder / CAPTIONS_FILE).write_text(json.dumps(captions), encoding="utf-8")

    remove_abandoned(place.parent)
    try:
        write_atomically(place, write)
    except OSError:
        if not place.exists():  # another run may have made the same one meanwhile
            raise


_HELD_OUT = 1 << 40
"""A part of a seed that no epoch has."""


class Order:
    """All images once an epoch, each epoch in its own order; any position can be asked for.

    `held_out` of them, chosen by the seed, are left out. Raises InvalidConfig where none is left.
    """

    def __init__(self, length: int, seed: int, held_out: int = 0) -> None:
        if held_out >= length:
            raise InvalidConfig(f"held_out: {held_out} of {length} images leaves none to train on")
        self.length, self.seed = length - held_out, seed
        self.epochs: dict[int, np.ndarray] = {}
        shuffled = np.random.default_rng((seed, _HELD_OUT)).permutation(length) if held_out else np.arange(length)
        self.images, self._held_out = np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])

    def held_out(self) -> Order:
        """The order of the images that are left out here."""
        order = Order(len(self._held_out), self.seed)
        order.images = self._held_out
        return order

    def rows(self, index: int, count: int) -> np.ndarray:
        """The images of batch number `index` of `count` images."""
        positions = np.arange(index * count, (index + 1) * count)
        return self.images[[self._epoch(int(p) // self.length)[int(p) % self.length] for p in positions]]

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self.epochs:
            self.epochs = {e: p for e, p in self.epochs.items() if e == epoch - 1}
            self.epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return self.epochs[epoch]


def to_images(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def to_pixels(images: Tensor) -> np.ndarray:
    """float [B, 3, H, W] in [0, 1] to uint8 [B, H, W, 3]."""
    return images.float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def to_halves(values: Tensor) -> np.ndarray:
    """float [B, ...] to float16, as latents and embeddings are cached."""
    return values.half().cpu().contiguous().numpy()


def resize(images: Tensor, size: int) -> Tensor:
    """Square images [B, C, H, H] to [B, C, size, size], averaging over what a pixel covers when they shrink."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=images.shape[-1] > size)


def fingerprint(path: Path) -> str:
    """A short name of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]
