"""Images that people have: a folder with captions beside them, or webdataset tars."""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import InvalidConfig

log = logging.getLogger("cascade")

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTION, TAR = ".txt", ".tar"
SHOWN = 5
"""Names that a message lists before it only counts."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged, or no images at all."""


@dataclass(frozen=True)
class Member:
    """Some bytes of a file: the whole of it, or a member of a tar.

    name: for people, relative to the folder that was given.
    length: None for all that follows `start`.
    """

    name: str
    path: Path
    start: int = 0
    length: int | None = None

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(-1 if self.length is None else self.length)


class FolderImages:
    """All images of a folder, its subfolders and the tars in it, or of one tar, each cut to a centerd square.

    An image's caption is the text of the same name beside it (`owl.png`, `owl.txt`; in a tar likewise). One that
    cannot be read is left out; `skipped` names it with the reason. `uncaptioned` names those without a caption, which
    get `caption`, or if that is None the file's name in words.

    Raises:
        InvalidConfig: nothing is there, or nothing that can be read.
    """

    def __init__(self, path: Path, size: int, caption: str | None = None) -> None:
        self.size = size
        self.skipped: dict[str, str] = {}
        self.uncaptioned: list[str] = []
        self.members: list[Member] = []
        self.captions: list[str] = []
        digest = hashlib.sha256(str(size).encode())
        texts, images = _sorted_out(_members(path))
        for stem, member in images:
            try:
                data = member.read()
                _opened(data, size)
                text = _caption(texts.get(stem))
            except UNREADABLE as error:
                self.skipped[member.name] = " ".join(str(error).split())[:200] or type(error).__name__
                continue
            if text is None:
                self.uncaptioned.append(member.name)
                text = " ".join(Path(stem).name.replace("_", " ").split()) if caption is None else caption
            self.members.append(member)
            self.captions.append(text)
            digest.update(hashlib.sha256(data).digest() + text.encode() + b"\0")
        self.name = f"folder-{digest.hexdigest()[:16]}"
        self._report(path, len(images))

    def _report(self, path: Path, found: int) -> None:
        for name, reason in self.skipped.items():
            log.warning("%s: left out, it cannot be read: %s", name, reason)
        if not found:
            raise InvalidConfig(f"{path}: no images there ({', '.join(IMAGES)}, or {TAR} with such)")
        if not self.members:
            name, reason = next(iter(self.skipped.items()))
            raise InvalidConfig(f"{path}: none of its {found} images can be read; {name}: {reason}")
        if self.uncaptioned:
            log.warning("%s: %s", path, self.describe_uncaptioned())
        log.info("%s: %d images, %d left out", path, len(self.members), len(self.skipped))

    def describe_uncaptioned(self) -> str:
        count, names = len(self.uncaptioned), ", ".join(self.uncaptioned[:SHOWN])
        return f"{count} of {len(self.members)} images without a caption: {names}{', ...' if count > SHOWN else ''}"

    def __len__(self) -> int:
        return len(self.members)

    def read(self, start: int, count: int) -> tuple[np.ndarray, list[str]]:
        chosen = slice(start, start + count)
        images = [_opened(member.read(), self.size) for member in self.members[chosen]]
        return np.stack(images), self.captions[chosen]


def _members(path: Path) -> Iterator[Member]:
    if path.is_file() and path.suffix.lower() == TAR:
        yield from _in_tar(path, path.name)
        return
    if not path.is_dir():
        raise InvalidConfig(f"{path}: no folder and no {TAR} of images")
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.is_file():
            name = file.relative_to(path).as_posix()
            yield from _in_tar(file, name) if file.suffix.lower() == TAR else [Member(name, file)]


def _in_tar(path: Path, name: str) -> Iterator[Member]:
    """Where the members of an uncompressed tar lie: they are then read without it."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isfile() and not info.issparse():
                    yield Member(f"{name}/{info.name}", path, info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InvalidConfig(f"{path}: not a {TAR} that can be read: {error}") from error


def _sorted_out(members: Iterator[Member]) -> tuple[dict[str, Member], list[tuple[str, Member]]]:
    """Texts by the name without its ending, and images with that name."""
    texts: dict[str, Member] = {}
    images: list[tuple[str, Member]] = []
    for member in members:
        stem, dot, ending = member.name.rpartition(".")
        ending = (dot + ending).lower()
        if ending == CAPTION:
            texts[stem] = member
        elif ending in IMAGES:
            images.append((stem, member))
    return texts, images


def _caption(member: Member | None) -> str | None:
    """One line of text; None where there is none."""
    if member is None:
        return None
    return " ".join(member.read().decode("utf-8-sig", errors="replace").split()) or None


def _opened(data: bytes, size: int) -> np.ndarray:
    """The image as uint8 [size, size, 3]: upright, on white where it is transparent, the largest square in it."""
    with Image.open(io.BytesIO(data)) as image:
        # JPEG can be read at a part of its size, which is much faster.
        image.draft("RGB", (size, size))
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.asarray(ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


def describe_problems(source: object) -> list[str]:
    """Lines about the images of a source that were left out or had no caption; none for other sources."""
    if not isinstance(source, FolderImages):
        return []
    skipped: Mapping[str, str] = source.skipped
    lines = [f"left out {name}: {reason}" for name, reason in skipped.items()]
    if skipped:
        lines.insert(0, f"{len(skipped)} of {len(skipped) + len(source)} images cannot be read")
    return [*lines, source.describe_uncaptioned()] if source.uncaptioned else lines
