"""Images that people have, as a training sees them: chosen, cut to their size, with their texts; and their edits."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InvalidConfig, InvalidImage, printable
from ..images import open_image
from ..images.pillow import FILE_BYTES
from .beside import NOTHING, Beside, read_beside
from .buckets import Crop, Size, bucket_sizes, closest, show, upright
from .listing import BAD_TAR, CAPTION, CAPTION_BYTES, IMAGES, TAR, Member, OnImage, Part, Places, RemotePart, Sample
from .metadata import CaptionSettings, Filter

log = logging.getLogger("cascade")

SHOWN = 5
"""Names that a message lists before it only counts."""
AT_ONCE = 64
"""Images that are decoded together."""
_THREADS = min(8, os.cpu_count() or 1)
_NOWHERE = Path()
SOURCE, TARGET = ".source", ".target"
"""What the names of an edit's images have before their endings."""


class Seen(NamedTuple):
    """An image as a training sees it: uint8 [h, w, 3], its texts (see CaptionSettings), how much of its size is
    enlargement and which share of it is cut away, the SHA-256 of its file, whether it has a caption of its own, and
    arrays of what lies beside it (see `read_beside`)."""

    pixels: np.ndarray
    texts: list[str | None]
    enlarged: float = 0.0
    cut: float = 0.0
    digest: bytes = b""
    captioned: bool = True
    beside: Mapping[str, np.ndarray] = MappingProxyType({})


def stacked(images: Sequence[Seen]) -> dict[str, np.ndarray]:
    """What lies beside images of one size, with a row for each."""
    return {name: np.stack([seen.beside[name] for seen in images]) for name in images[0].beside}


class FolderImages:
    """All images of folders, their subfolders and the tars in them, of tars here or elsewhere, and of lists in JSON.

    An image's caption is the text of the same name beside it (`owl.png`, `owl.txt`; in a tar likewise), or what
    `captions` says. One that cannot be read is left out when it is read, and `skipped` then names it with the reason.
    `uncaptioned` names those without a caption, which get `caption`, or if that is None the file's name in words.

    name: of names, sizes and times of the files, and of the settings; the content is not looked at.
    sizes: the sizes at which images are shown; see `bucket_sizes`. `random_ratio` of the images get any of them.
    beside: what is read in addition.
    on_image: called for each file and image that is looked at.

    Raises:
        InvalidConfig: nothing is there, or too much.
    """

    def __init__(
        self,
        places: Path | str | Sequence[str],
        size: int,
        caption: str | None = None,
        on_image: OnImage | None = None,
        *,
        ratios: Sequence[float] = (),
        random_ratio: float = 0.0,
        crop: Crop = "center",
        captions: CaptionSettings | None = None,
        filters: Sequence[Filter] = (),
        described: str = "",
        beside: Beside = NOTHING,
    ) -> None:
        self.size, self.caption, self.on_image = size, caption, on_image or (lambda: None)
        self.sizes = bucket_sizes(size, ratios)
        self.random_ratio = random_ratio
        self.crop: Crop = crop
        self.captions, self.filters, self.beside = captions or CaptionSettings(), filters, beside
        self.skipped: dict[str, str] = {}
        self.uncaptioned: list[str] = []
        self.odd: list[str] = []
        self.filtered = 0
        texts = [str(places)] if isinstance(places, Path | str) else list(places)
        self.shown = texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"
        self.places = Places(texts, self.on_image, self._skip)
        whole = json.dumps([self.places.stamp, size, caption, described, *([beside] if any(beside) else [])])
        self.name = f"folder-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"

    place_of: Sequence[int] = ()
    """Of each part, the number of its place among those that were given; known once `parts` was called."""

    def parts(self) -> list[Part]:
        pairs = self.places.numbered_parts()
        found, self.place_of = [part for part, _ in pairs], [number for _, number in pairs]
        if not found:
            unread = "".join(f"; {name}: {reason}" for name, reason in list(self.skipped.items())[:SHOWN])
            raise InvalidConfig(f"{self.shown}: no images there ({', '.join(IMAGES)}, or {TAR} with such){unread}")
        return found

    def samples(self, part: Part, scratch: Path) -> Iterator[Sample]:
        """Those of a part; where it ends in the middle, that is noted."""
        try:
            yield from part.samples(scratch)
        except BAD_TAR as error:
            self._skip(part.name, error)
            log.warning("%s: %s", part.name, self.skipped[part.name])

    def read(self, part: Part, scratch: Path = _NOWHERE) -> Iterator[Seen]:
        """The images of a part that can be read and that the filters leave; `scratch` is removed after a remote one."""
        samples = self.samples(part, scratch)
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                while some := list(itertools.islice(samples, AT_ONCE)):
                    yield from self._together(pool, some)
        finally:
            if isinstance(part, RemotePart):
                shutil.rmtree(scratch, ignore_errors=True)

    def _together(self, pool: ThreadPoolExecutor, samples: Sequence[Sample]) -> Iterator[Seen]:
        for sample, (seen, error) in zip(samples, pool.map(self._try, samples), strict=True):
            self.on_image()
            if error is not None:
                self._skip(sample.image.name, error)
            elif seen is None:
                self.filtered += 1
            else:
                yield seen

    def _try(self, sample: Sample) -> tuple[Seen | None, Exception | None]:
        try:
            random = np.random.default_rng(_number(sample.image.name))
            return self.see(sample, random), None
        except (InvalidImage, OSError) as error:
            return None, error

    def see(self, sample: Sample, random: np.random.Generator, bucket: int | None = None) -> Seen | None:
        """The image as it is trained on, in the bucket of its shape or in another. None where a filter leaves it out.

        Raises InvalidImage, OSError.
        """
        data = sample.image.read(FILE_BYTES)
        # Boxes of faces are in pixels of the whole image.
        smaller = self.size if len(self.sizes) == 1 and self.beside.faces is None else None
        with open_image(data, smaller) as image:
            metadata = self._metadata(sample, image) if self._needs_metadata(sample) else {}
            if not all(passes(metadata) for passes in self.filters):
                return None
            lying = upright(image)
            whole = Size(lying.height, lying.width)
            if bucket is None:
                bucket = self._bucket(whole, random)
            shown = show(lying, self.sizes[bucket], self.crop, random)
        beside = read_beside(sample, self.beside, whole, self.sizes[bucket], self.size, shown)
        texts = self._texts(sample, metadata)
        captioned = any(text is not None for text in texts)
        if not captioned:
            self.uncaptioned.append(sample.image.name)
            words = " ".join(Path(sample.image.name).stem.replace("_", " ").split())
            texts[0] = words if self.caption is None else self.caption
        digest = hashlib.sha256(data + beside.digest).digest()
        return Seen(shown.pixels, texts, shown.enlarged, shown.cut, digest, captioned, beside.arrays)

    def look(self, sample: Sample) -> int | None:
        """The bucket of an image, from its header; None where a filter leaves it out. Raises InvalidImage, OSError."""
        if len(self.sizes) == 1 and not self.filters:
            return 0
        with open_image(sample.image.read(FILE_BYTES)) as image:
            metadata = self._metadata(sample, image) if self._needs_metadata(sample) else {}
            if not all(passes(metadata) for passes in self.filters):
                return None
            return closest(_turned(image), self.sizes)

    def _bucket(self, size: Size, random: np.random.Generator) -> int:
        if self.random_ratio > 0 and random.random() < self.random_ratio:
            return int(random.integers(len(self.sizes)))
        return closest(size, self.sizes)

    def _needs_metadata(self, sample: Sample) -> bool:
        asks = self.filters or list(self.captions.keys) != ["txt"] or self.captions.template != "{caption}"
        return bool(asks) or isinstance(sample.metadata, Mapping)

    def _metadata(self, sample: Sample, image: Image.Image) -> Mapping[str, Any]:
        """What is said about it, and its own width and height where nothing is."""
        size = _turned(image)
        own: dict[str, Any] = {"width": size.width, "height": size.height}
        if isinstance(sample.metadata, Member):
            try:
                found = json.loads(sample.metadata.read(CAPTION_BYTES))
            except (ValueError, RecursionError) as error:
                raise InvalidImage(f"its metadata: {error}") from error
            return {**own, **found} if isinstance(found, dict) else own
        return {**own, **(sample.metadata or {})}

    def _texts(self, sample: Sample, metadata: Mapping[str, Any]) -> list[str | None]:
        text = metadata.get("txt") if isinstance(sample.metadata, Mapping) else None
        plain = self._caption(sample.text) if not isinstance(text, str) else " ".join(text.split()) or None
        return self.captions.texts(plain, metadata)

    def _caption(self, member: Member | None) -> str | None:
        """One line of text; None where there is none. Raises InvalidImage, OSError."""
        if member is None:
            return None
        text, odd = _line_of(member)
        if odd:
            self.odd.append(member.name)
        return text

    def _skip(self, name: str, error: Exception) -> None:
        self.skipped[name] = printable(" ".join(str(error).split())[:200]) or type(error).__name__

    def told(self) -> dict[str, Any]:
        """What was noted since the last time, as JSON-able values."""
        found = {"skipped": self.skipped, "uncaptioned": self.uncaptioned, "odd": self.odd, "filtered": self.filtered}
        self.skipped, self.uncaptioned, self.odd, self.filtered = {}, [], [], 0
        return found

    def tell(self, told: Mapping[str, Any]) -> None:
        """Note what was noted at another time or by another process."""
        self.skipped |= told["skipped"]
        self.uncaptioned += told["uncaptioned"]
        self.odd += told["odd"]
        self.filtered += told["filtered"]

    def problems(self, read: int) -> list[str]:
        """Lines about what was left out, beside `read` images. Raises InvalidConfig for none."""
        left_out = len(self.skipped)
        if not read:
            if self.filtered:
                raise InvalidConfig(f"{self.shown}: the filters leave none of its {self.filtered + left_out} images")
            name, reason = next(iter(self.skipped.items()), ("", "no images there"))
            raise InvalidConfig(f"{self.shown}: none of its {left_out} images can be read; {name}: {reason}")
        lines = [f"left out {name}: {reason}" for name, reason in sorted(self.skipped.items())]
        if lines:
            lines.insert(0, f"{left_out} of {left_out + read} images cannot be read")
        if self.filtered:
            lines.append(f"the filters leave out {self.filtered} of {self.filtered + left_out + read} images")
        for names, what in ((self.uncaptioned, "without a caption"), (self.odd, "whose caption is not UTF-8")):
            if names:
                some = ", ".join(sorted(names)[:SHOWN])
                lines.append(f"{len(names)} of {read} images {what}: {some}{', ...' if len(names) > SHOWN else ''}")
        return lines


class FolderEdits:
    """All edits of folders, their subfolders and the tars in them, or of tars, each image cut to a centered square.

    An edit is three files: `owl.source.png`, `owl.target.png`, and the instruction in `owl.txt`. An image is read as
    source and target beside each other; its caption is the instruction.

    Raises:
        InvalidConfig: nothing is there, something of an edit is missing or cannot be read, or too much.
    """

    def __init__(self, places: Path | str | Sequence[str], size: int, on_image: OnImage | None = None) -> None:
        self.size, self.on_image = size, on_image or (lambda: None)
        self.captions: list[str] = []
        self.pairs: list[tuple[Member, Member]] = []
        texts = [str(places)] if isinstance(places, Path | str) else list(places)
        shown, problems = ", ".join(texts), list[str]()
        found = Places(texts, self.on_image, lambda name, error: problems.append(f"{name}: {error}"))
        edits: dict[tuple[Path, str], dict[str, Member]] = {}
        for member in found.members():
            self._sort_in(member, edits)
        digest = hashlib.sha256(f"edits {size}".encode())
        for (_, stem), edit in edits.items():
            try:
                problems += self._add(stem, edit, digest)
            except (InvalidImage, OSError) as error:
                problems.append(f"{stem}: {error}")
        what = f"an edit is three files: NAME{SOURCE}.png, NAME{TARGET}.png and the instruction in NAME{CAPTION}"
        if problems:
            some = "; ".join(problems[:SHOWN]) + ("; ..." if len(problems) > SHOWN else "")
            raise InvalidConfig(f"{shown}: {len(problems)} of {len(edits)} edits cannot be used: {some}; {what}")
        if not self.pairs:
            raise InvalidConfig(f"{shown}: no edits there; {what}")
        self.name = f"edits-{digest.hexdigest()[:16]}"
        log.info("%s: %d edits", shown, len(self.pairs))

    @staticmethod
    def _sort_in(member: Member, edits: dict[tuple[Path, str], dict[str, Member]]) -> None:
        """By folder or tar, as several may have the same names."""
        place = member.path.parent if member.length is None else member.path
        stem, dot, ending = member.name.rpartition(".")
        ending = (dot + ending).lower()
        part = next((part for part in (SOURCE, TARGET) if ending in IMAGES and stem.endswith(part)), None)
        if part is not None:
            edits.setdefault((place, stem.removesuffix(part)), {})[part] = member
        elif ending == CAPTION:
            edits.setdefault((place, stem), {})[CAPTION] = member

    def _add(self, stem: str, edit: Mapping[str, Member], digest: Any) -> Iterator[str]:
        """Take an edit, or say what it lacks. Raises InvalidImage, OSError."""
        self.on_image()
        instruction = _line_of(edit[CAPTION])[0] if CAPTION in edit else None
        source, target = edit.get(SOURCE), edit.get(TARGET)
        needed = {f"its image {SOURCE}": source, f"its image {TARGET}": target, "its instruction": instruction}
        if missing := [what for what, there in needed.items() if there is None]:
            yield f"{stem} lacks {' and '.join(missing)}"
        if source is None or target is None or instruction is None:
            return
        for member in (source, target):
            data = member.read(FILE_BYTES)
            self._square(data)
            digest.update(hashlib.sha256(data).digest())
        digest.update(instruction.encode() + b"\0")
        self.pairs.append((source, target))
        self.captions.append(instruction)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, start: int, count: int) -> tuple[np.ndarray, list[str]]:
        """uint8 [n, size, 2 size, 3], and the instructions."""
        images = [np.concatenate([self._image(each) for each in pair], 1) for pair in self.pairs[start : start + count]]
        return np.stack(images), self.captions[start : start + count]

    def _image(self, member: Member) -> np.ndarray:
        self.on_image()
        try:
            return self._square(member.read(FILE_BYTES))
        except (InvalidImage, OSError) as error:
            raise InvalidConfig(f"{member.path}: {member.name} was changed or removed meanwhile: {error}") from error

    def _square(self, data: bytes) -> np.ndarray:
        """uint8 [size, size, 3]. Raises InvalidImage."""
        with open_image(data, self.size) as image:
            return show(upright(image), Size(self.size, self.size), "center", np.random.default_rng(0)).pixels


def _line_of(member: Member) -> tuple[str | None, bool]:
    """A caption in one line, None where it is empty, and whether it is not UTF-8. Raises InvalidImage, OSError."""
    try:
        data = member.read(CAPTION_BYTES)
    except InvalidImage as error:
        raise InvalidImage(f"its caption: {error}") from error
    odd = False
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        odd, text = True, data.decode("utf-8-sig", errors="replace")
    return " ".join(text.replace("\0", " ").split()) or None, odd


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "big")


_LYING = (5, 6, 7, 8)
"""Values of EXIF's orientation with width and height exchanged."""


def _turned(image: Image.Image) -> Size:
    """The size of an image once it is upright."""
    if image.format == "PNG" and "exif" not in image.info:
        return Size(image.height, image.width)  # asking Pillow for it would decode the image
    try:
        lies = image.getexif().get(0x0112) in _LYING
    except Exception as error:
        raise InvalidImage(f"its EXIF: {error}") from error
    return Size(image.width, image.height) if lies else Size(image.height, image.width)
