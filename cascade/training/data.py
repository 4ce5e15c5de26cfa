"""Images to train on: which ones, how they are cut, and in which order; and pixels as tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BeforeValidator, StrictBool, ValidationInfo, field_validator
from torch import Tensor

from ..errors import InvalidConfig
from .beside import NOTHING, Beside
from .buckets import Crop, ratio
from .cache import (
    CHUNK,
    Cache,
    Captions,
    Compute,
    ImageSource,
    OnChunk,
    cached,
    fingerprint,
    shared,
)
from .config import Amount, Count, Pixels, Seed, Settings, Several, Share, TrainingConfig, _to_path
from .folders import FolderEdits, FolderImages
from .listing import MASK, OnImage
from .metadata import CaptionSettings, FilterSettings, parse_filter
from .order import BucketOrder, Order
from .processes import Processes
from .remote import is_remote
from .stream import Streamed, StreamOrder
from .task import derive_seed

__all__ = [
    "CHUNK",
    "Cache",
    "Captions",
    "Compute",
    "ImageSettings",
    "ImageSource",
    "OnChunk",
    "Order",
    "Streamed",
    "cached",
    "extents",
    "fingerprint",
    "importance",
    "open_images",
    "order_of",
    "prepared",
    "resize",
    "scaled",
    "shared",
    "squares_only",
    "to_halves",
    "to_images",
    "to_pixels",
]


def _to_place(value: Any, info: ValidationInfo) -> str:
    if isinstance(value, str) and is_remote(value):
        return value
    return str(_to_path(value.removeprefix("file:") if isinstance(value, str) else value, info))


Place = Annotated[str, BeforeValidator(_to_place)]
"""A folder, a tar, a list in JSON, a pattern with braces; `s3://...` or `pipe:COMMAND`."""


def _a_ratio(value: str | float) -> str | float:
    ratio(value)
    return value


Ratio = Annotated[str | float, AfterValidator(_a_ratio)]


class PlaceSettings(Settings):
    """A place whose images are seen `repeats` times as often, and whose loss counts `loss_weight`."""

    path: Place
    repeats: Count = 1
    loss_weight: Amount = 1.0


class ImageSettings(Settings):
    """Which images, and how they are shown: as squares of `size` pixels, or with `aspect_ratios` at the nearest of
    these shapes, of about the same area. `random_ratio` of them get any of the shapes. `crop` says which part is shown
    where the shape differs: the middle, any, or the part with the most edges.

    `source` is a name of IMAGE_SOURCES. `folder` are those at `path`, one place or several: folders with captions
    beside the images, webdataset tars, lists in JSON; `s3://` and `pipe:` are read through a command. `caption` is for
    images that have none, `captions` says where texts come from. `filters` are comparisons of metadata: images for
    which one is false are left out. `edits` are pairs of images, before and after, with an instruction each, in folders
    and tars at `path`. A source that makes its images makes `count` from `seed`.

    With `masks` the loss counts where `owl.mask.png` beside `owl.png` is white, in part where it is gray.

    With `stream` nothing is computed before the training: images are read and encoded as they come, `shuffle` tars (or
    parts of 256 files) mixed at a time.
    """

    source: str = "folder"
    path: Place | Several[Place | PlaceSettings] | None = None
    caption: str | None = None
    captions: CaptionSettings = CaptionSettings()
    filters: tuple[FilterSettings, ...] = ()
    count: Count | None = None
    seed: Seed = 1
    size: Pixels = 256
    aspect_ratios: Several[Ratio] | None = None
    random_ratio: Share = 0.0
    crop: Crop = "center"
    masks: StrictBool = False
    stream: StrictBool = False
    shuffle: Count = 4

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source not in IMAGE_SOURCES:
            raise ValueError(f"there is no image source {source!r}; there are {', '.join(IMAGE_SOURCES)}")
        return source

    @property
    def places(self) -> list[str]:
        paths = [] if self.path is None else [self.path] if isinstance(self.path, str) else self.path
        return [each.path if isinstance(each, PlaceSettings) else each for each in paths]

    @property
    def place_settings(self) -> list[PlaceSettings]:
        """Of each of `places`; empty where none has any."""
        paths = [] if self.path is None or isinstance(self.path, str) else list(self.path)
        if not any(isinstance(each, PlaceSettings) for each in paths):
            return []
        return [each if isinstance(each, PlaceSettings) else PlaceSettings(path=each) for each in paths]


def _open_folder(settings: ImageSettings, on_image: OnImage | None = None, beside: Beside = NOTHING) -> FolderImages:
    if settings.path is None:
        raise InvalidConfig("images: the source folder needs a path")
    described = settings.model_dump(
        mode="json", include={"captions", "filters", "aspect_ratios", "random_ratio", "crop"}
    )
    if settings.place_settings:
        described["places"] = settings.places  # their order counts, too
    return FolderImages(
        settings.places,
        settings.size,
        settings.caption,
        on_image,
        ratios=[ratio(each) for each in settings.aspect_ratios or ()],
        random_ratio=settings.random_ratio,
        crop=settings.crop,
        captions=settings.captions,
        filters=[parse_filter(*each) for each in settings.filters],
        described=json.dumps(described),
        beside=beside._replace(mask=settings.masks),
    )


def _open_edits(settings: ImageSettings) -> ImageSource:
    if settings.path is None:
        raise InvalidConfig("images: the source edits needs a path")
    return FolderEdits(settings.places, settings.size)


IMAGE_SOURCES: dict[str, Callable[[ImageSettings], Any]] = {"folder": _open_folder, "edits": _open_edits}
"""Name -> what opens such images. Whoever has images of another kind adds them here before settings are read."""


def open_images(
    settings: ImageSettings, on_image: OnImage | None = None, beside: Beside = NOTHING
) -> ImageSource | FolderImages:
    """Raises InvalidConfig for settings that the source lacks, and for a place that is not there.

    `beside` is what is read in addition to images and texts. `on_image` is called for each file of a folder that is
    looked at; an exception in it ends the work.
    """
    if settings.source == "folder":
        return _open_folder(settings, on_image, beside)
    if any(beside) or settings.masks or settings.place_settings:
        raise InvalidConfig(f"images: the source {settings.source} has no masks, hints or faces, and no places")
    return IMAGE_SOURCES[settings.source](settings)


def squares_only(settings: ImageSettings, task: str) -> ImageSettings:
    """Raises InvalidConfig where images of several shapes, a stream, or losses that count differently are asked for in
    a training that has none."""
    asked = {name: getattr(settings, name) for name in ("aspect_ratios", "stream", "masks")}
    for name, value in {**asked, "repeats or loss_weight": settings.place_settings}.items():
        if value:
            raise InvalidConfig(f"{task}: images: {name} is not possible in this training")
    return settings


def prepared(
    folder: Path,
    kind: str,
    settings: ImageSettings,
    compute: Compute,
    *,
    key: str = "",
    on_chunk: OnChunk | None = None,
    on_image: OnImage | None = None,
    beside: Beside = NOTHING,
) -> Cache | Streamed:
    """What `compute` makes of the images: from a cache in `folder` that is made if need be, or as they come."""
    source = open_images(settings, on_image, beside)
    if not settings.stream:
        data: Any = cached(folder, kind, source, compute, key=key, on_chunk=on_chunk)
    elif isinstance(source, FolderImages):
        data = Streamed(source, compute, folder / "stream", settings.shuffle)
    else:
        raise InvalidConfig(f"images: stream: images of the source {settings.source} are drawn, not read")
    if places := settings.place_settings:
        data.repeats, data.loss_weights = [each.repeats for each in places], [each.loss_weight for each in places]
    return data


def order_of(data: Cache | Streamed, config: TrainingConfig) -> Order | BucketOrder | StreamOrder:
    """The order in which a training sees its images. Raises InvalidConfig where `held_out` leaves none."""
    seed = derive_seed(config.seed, "order")
    if isinstance(data, Streamed):
        return StreamOrder(data, seed, config.held_out, config.accumulation * Processes().size)
    if len(data.counts) == 1:
        return Order(len(data), seed, config.held_out, data.all_repeats())
    return BucketOrder(data.counts, seed, config.held_out, data.all_repeats())


def to_images(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def to_pixels(images: Tensor) -> np.ndarray:
    """float [B, 3, H, W] in [0, 1] to uint8 [B, H, W, 3]."""
    return images.float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def scaled(images: Tensor, size: int, wanted: int, factor: int = 32) -> tuple[int, int]:
    """The size (h, w) of images [B, C, H, W] where squares of `size` become `wanted`; multiples of `factor`."""
    height, width = (max(factor, round(n * wanted / size / factor) * factor) for n in images.shape[-2:])
    return (wanted, wanted) if images.shape[-2] == images.shape[-1] else (height, width)


def extents(data: Cache | Streamed, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """[n, 2]: how much of each image's size is enlargement, log2, and which share of it is cut away."""
    return torch.from_numpy(data.extents(rows)).to(device)


def importance(data: Cache | Streamed, rows: np.ndarray, latents: Tensor) -> Tensor | None:
    """How much the loss of some images counts, [n], or with masks at each position of `latents` [n, c, h, w],
    [n, 1, h, w]; None where everything counts alike."""
    weights = data.weights(rows)
    found = None if weights is None else torch.from_numpy(weights).to(latents.device)
    if not data.has(MASK):
        return found
    masks = data.take(MASK, rows, latents.device)[:, None].float() / 255
    shown = F.interpolate(masks, latents.shape[-2:], mode="area")
    return shown if found is None else shown * found[:, None, None, None]


def to_halves(values: Tensor) -> np.ndarray:
    """float [B, ...] to float16, as latents and embeddings are cached."""
    return values.half().cpu().contiguous().numpy()


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Images [B, C, H, W] to [B, C, size, size] or to (h, w), averaging over what a pixel covers when they shrink."""
    wanted = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[-2:]) == wanted:
        return images
    return F.interpolate(images, size=wanted, mode="bilinear", antialias=images.shape[-1] > wanted[1])
