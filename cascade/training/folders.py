"""Images that people have: a folder with captions beside them, or webdataset tars; and edits of images likewise."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import InvalidConfig, InvalidImage, printable
from ..images import open_image
from ..images.pillow import FILE_BYTES

log = logging.getLogger("cascade")

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTION, TAR = ".txt", ".tar"
SOURCE, TARGET = ".source", ".target"
"""What the names of an edit's images have before their endings."""
LISTED = (*IMAGES, CAPTION, TAR)
ENTRIES = 1_000_000
"""Files, folders and members of tars that are looked at; a whole disk has more."""
CAPTION_BYTES = 1 << 16
"""Of a caption; a training reads 77 tokens of it."""
HEADER_BYTES = 1 << 20
"""Of what describes a member of a tar; a tar may claim gigabytes."""
SHOWN = 5
"""Names that a message lists before it only counts."""

OnImage = Callable[[], object]
"""Called for each file and image that is looked at; an exception in it ends the work."""

_BAD_TAR = (tarfile.TarError, OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Member:
    """Some bytes of a file: the whole of it, or a member of a tar.

    name: for people, relative to the folder that was given; printable.
    length: None for all that follows `start`.
    """

    name: str
    path: Path
    start: int = 0
    length: int | None = None

    def read(self, most: int) -> bytes:
        """Raises InvalidImage for more than `most` bytes or fewer than there should be, OSError."""
        length = self.path.stat().st_size if self.length is None else self.length
        if length > most:
            raise InvalidImage(f"it has {length} bytes; at most {most} are read")
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(length)
        if len(data) < length:
            raise InvalidImage("the file ends before it")
        return data


class FolderImages:
    """All images of a folder, its subfolders and the tars in it, or of one tar, each cut to a centerd square.

    An image's caption is the text of the same name beside it (`owl.png`, `owl.txt`; in a tar likewise). One that
    cannot be read is left out; `skipped` names it with the reason. `uncaptioned` names those without a caption, which
    get `caption`, or if that is None the file's name in words.

    on_image: called for each file and image that is looked at.

    Raises:
        InvalidConfig: nothing is there, nothing that can be read, or too much.
    """

    def __init__(self, path: Path, size: int, caption: str | None = None, on_image: OnImage | None = None) -> None:
        self.size, self.on_image = size, on_image or (lambda: None)
        self.skipped: dict[str, str] = {}
        self.uncaptioned: list[str] = []
        self.members: list[Member] = []
        self.captions: list[str] = []
        digest = hashlib.sha256(str(size).encode())
        texts, images = _sorted_out(self._members(path))
        for stem, member in images:
            self.on_image()
            try:
                data = member.read(FILE_BYTES)
                _squared(data, size)
                text = _caption(texts.get(stem))
            except (InvalidImage, OSError) as error:
                self._skip(member.name, error)
                continue
            if text is None:
                self.uncaptioned.append(member.name)
                text = " ".join(Path(stem).name.replace("_", " ").split()) if caption is None else caption
            self.members.append(member)
            self.captions.append(text)
            digest.update(hashlib.sha256(data).digest() + text.encode() + b"\0")
        self.name = f"folder-{digest.hexdigest()[:16]}"
        self._report(path, len(images))

    def _members(self, path: Path) -> Iterator[Member]:
        """All files, and the members of tars; what cannot be listed is noted as skipped."""
        if path.is_file() and path.suffix.lower() == TAR:
            files = [path]
        elif path.is_dir():
            files = sorted(self._files(path))
        else:
            raise InvalidConfig(f"{path}: no folder and no {TAR} of images")
        for count, member in enumerate(itertools.chain.from_iterable(self._in(file, path) for file in files)):
            self._look(count, path)
            yield member

    def _look(self, count: int, path: Path) -> None:
        self.on_image()
        if count >= ENTRIES:
            raise InvalidConfig(f"{path}: more than {ENTRIES} files: give a folder that has only the images")

    def _files(self, folder: Path) -> Iterator[Path]:
        """Those of a folder and its subfolders with an ending that counts, in no order; no hidden ones."""
        waiting, count = [folder], 0
        while waiting:
            place = waiting.pop()
            try:
                with os.scandir(place) as entries:
                    for entry in entries:
                        count += 1
                        self._look(count, folder)
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(Path(entry.path))
                        elif Path(entry.name).suffix.lower() in LISTED and Path(entry.path).is_file():
                            yield Path(entry.path)
            except OSError as error:
                self._skip(_name(place, folder), error)

    def _in(self, file: Path, root: Path) -> Iterator[Member]:
        """The file itself, or what is in it if it is a tar, as far as that can be read."""
        name = _name(file, root)
        if file.suffix.lower() != TAR:
            yield Member(name, file)
            return
        try:
            yield from _in_tar(file, name)
        except _BAD_TAR as error:
            self._skip(name, error)

    def _skip(self, name: str, error: Exception) -> None:
        self.skipped[name] = printable(" ".join(str(error).split())[:200]) or type(error).__name__

    def _report(self, path: Path, found: int) -> None:
        for name, reason in self.skipped.items():
            log.warning("%s: left out, it cannot be read: %s", name, reason)
        if not found:
            unread = "".join(f"; {name}: {reason}" for name, reason in list(self.skipped.items())[:SHOWN])
            raise InvalidConfig(f"{path}: no images there ({', '.join(IMAGES)}, or {TAR} with such){unread}")
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
        images = [self._image(member) for member in self.members[start : start + count]]
        return np.stack(images), self.captions[start : start + count]

    def _image(self, member: Member) -> np.ndarray:
        self.on_image()
        try:
            return _squared(member.read(FILE_BYTES), self.size)
        except (InvalidImage, OSError) as error:
            raise InvalidConfig(f"{member.path}: {member.name} was changed or removed meanwhile: {error}") from error


class FolderEdits(FolderImages):
    """All edits of a folder, its subfolders and the tars in it, or of one tar, each image cut to a centerd square.

    An edit is three files: `owl.source.png`, `owl.target.png`, and the instruction in `owl.txt`. An image is read as
    source and target beside each other; its caption is the instruction.

    Raises:
        InvalidConfig: nothing is there, something of an edit is missing or cannot be read, or too much.
    """

    def __init__(self, path: Path, size: int, on_image: OnImage | None = None) -> None:
        self.size, self.on_image = size, on_image or (lambda: None)
        self.skipped, self.uncaptioned = {}, []
        self.captions: list[str] = []
        self.pairs: list[tuple[Member, Member]] = []
        texts, images = _sorted_out(self._members(path))
        named = dict(images)
        stems = {stem.removesuffix(part) for stem in named for part in (SOURCE, TARGET) if stem.endswith(part)}
        stems |= set(texts)
        problems, digest = [], hashlib.sha256(f"edits {size}".encode())
        for stem in sorted(stems):
            pair = named.get(stem + SOURCE), named.get(stem + TARGET)
            try:
                problems += self._add(stem, pair, texts.get(stem), digest)
            except (InvalidImage, OSError) as error:
                problems.append(f"{stem}: {error}")
        what = f"an edit is three files: NAME{SOURCE}.png, NAME{TARGET}.png and the instruction in NAME{CAPTION}"
        if problems:
            shown = "; ".join(problems[:SHOWN]) + ("; ..." if len(problems) > SHOWN else "")
            raise InvalidConfig(f"{path}: {len(problems)} of {len(stems)} edits cannot be used: {shown}; {what}")
        if not self.pairs:
            raise InvalidConfig(f"{path}: no edits there; {what}")
        self.name = f"edits-{digest.hexdigest()[:16]}"
        log.info("%s: %d edits", path, len(self.pairs))

    def _add(
        self, stem: str, pair: tuple[Member | None, Member | None], text: Member | None, digest: Any
    ) -> Iterator[str]:
        """Take an edit, or say what it lacks. Raises InvalidImage, OSError."""
        self.on_image()
        instruction = _caption(text)
        source, target = pair
        found = {f"its image {SOURCE}": source, f"its image {TARGET}": target, "its instruction": instruction}
        if missing := [what for what, there in found.items() if there is None]:
            yield f"{stem} lacks {' and '.join(missing)}"
        if source is None or target is None or instruction is None:
            return
        for member in (source, target):
            data = member.read(FILE_BYTES)
            _squared(data, self.size)
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


def _name(file: Path, root: Path) -> str:
    """For people."""
    return _shown(file.name if file == root else file.relative_to(root).as_posix())


def _shown(name: str) -> str:
    """A name in one line. Those of files need not be UTF-8, and may hold line breaks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class _Headers(io.FileIO):
    """A tar of which only headers are read, none larger than HEADER_BYTES."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _in_tar(path: Path, name: str) -> Iterator[Member]:
    """Where the members of an uncompressed tar lie: they are then read without it. Raises _BAD_TAR."""
    with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            if info.size < 0:
                raise tarfile.ReadError("a member of less than 0 bytes")
            if info.isfile() and not info.issparse():
                yield Member(_shown(f"{name}/{info.name}"), path, info.offset_data, info.size)
            tar.members = []  # type: ignore[attr-defined]  # which else keeps them all


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
    """One line of text; None where there is none. Raises InvalidImage, OSError."""
    if member is None:
        return None
    try:
        data = member.read(CAPTION_BYTES)
    except InvalidImage as error:
        raise InvalidImage(f"its caption: {error}") from error
    return " ".join(data.decode("utf-8-sig", errors="replace").replace("\0", " ").split()) or None


def _squared(data: bytes, size: int) -> np.ndarray:
    """The image as uint8 [size, size, 3]: upright, on white where it is transparent, the largest square in it.

    Raises InvalidImage.
    """
    with open_image(data, size) as image:
        ImageOps.exif_transpose(image, in_place=True)
        upright = image
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            layer = image.convert("RGBA")
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
