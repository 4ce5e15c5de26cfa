"""Where images lie: folders, webdataset tars here or elsewhere, and lists in JSON, in parts that are read on their own.

No image is opened here, and no part keeps more than the names of its files.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from ..errors import InvalidConfig, InvalidImage, shown
from .remote import expand, fetch, is_remote, listed

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTION, METADATA, TAR, LIST = ".txt", ".json", ".tar", ".jsonl"
LISTED = (*IMAGES, CAPTION, METADATA, TAR)
HINT, MASK, FACES = "hint", "mask", "faces"
MARKS = {HINT: IMAGES, MASK: IMAGES, FACES: (METADATA,)}
"""What else may lie beside `owl.png`: `owl.hint.png`, `owl.mask.png`, `owl.faces.json`; mark -> endings of its file."""
ENTRIES = 20_000_000
"""Files and folders that are looked at; a whole disk has more."""
CAPTION_BYTES = 1 << 16
"""Of a caption, or of an image's metadata; a training reads 77 tokens of it."""
HEADER_BYTES = 1 << 20
"""Of what describes a member of a tar; a tar may claim gigabytes."""
LIST_BYTES = 1 << 30
"""Of a .json with all images, which is read whole; a .jsonl may be larger."""
PART = 256
"""Images of a folder or a list that are read together."""

OnImage = Callable[[], object]
"""Called for each file and image that is looked at; an exception in it ends the work."""

BAD_TAR = (tarfile.TarError, OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


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


class Sample(NamedTuple):
    """An image with what lies beside it: a text, metadata, which a list has in itself, and files of MARKS."""

    image: Member
    text: Member | None = None
    metadata: Member | Mapping[str, Any] | None = None
    hint: Member | None = None
    mask: Member | None = None
    faces: Member | None = None


class Part(Protocol):
    """Images that are read one after the other: some of a folder or a list, or a tar."""

    @property
    def name(self) -> str: ...
    def samples(self, scratch: Path) -> Iterator[Sample]:
        """Raises BAD_TAR where it ends in the middle, InvalidConfig. Tars from elsewhere lie in `scratch` meanwhile."""
        ...


@dataclass(frozen=True)
class FilesPart:
    """Images of a folder, by their names in it; marked: name without ending -> mark -> name of its file."""

    root: Path
    names: Sequence[str]
    marked: Mapping[str, Mapping[str, str]]

    @property
    def name(self) -> str:
        return f"{shown_name(self.names[0])} and {len(self.names) - 1} more"

    def samples(self, scratch: Path) -> Iterator[Sample]:
        for name in self.names:
            path = self.root / name
            marked = self.marked.get(name.rpartition(".")[0], {})
            yield Sample(
                Member(shown_name(name), path),
                _beside(path, CAPTION, self.root),
                _beside(path, METADATA, self.root),
                **{mark: Member(shown_name(each), self.root / each) for mark, each in marked.items()},
            )


def _beside(path: Path, ending: str, root: Path) -> Member | None:
    for each in (path.with_suffix(ending), path.with_suffix(ending.upper())):
        if each.is_file():
            return Member(shown_name(each.relative_to(root).as_posix()), each)
    return None


@dataclass(frozen=True)
class TarPart:
    """A tar of this machine."""

    path: Path
    name: str

    def samples(self, scratch: Path) -> Iterator[Sample]:
        return _grouped(_in_tar(self.path, self.name))


@dataclass(frozen=True)
class RemotePart:
    """A tar that a command brings."""

    name: str

    def samples(self, scratch: Path) -> Iterator[Sample]:
        return _grouped(_in_tar(fetch(self.name, scratch), shown_name(self.name)))


@dataclass(frozen=True)
class LinesPart:
    """Some lines of a .jsonl, from a byte of it."""

    path: Path
    start: int
    count: int

    @property
    def name(self) -> str:
        return f"{shown_name(self.path.name)} from byte {self.start}"

    def samples(self, scratch: Path) -> Iterator[Sample]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            for _ in range(self.count):
                line = file.readline(CAPTION_BYTES)
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InvalidConfig(f"{self.path}: a line that is no JSON: {shown(line[:80])}") from error
                yield _entry(entry, self.path)


@dataclass(frozen=True)
class EntriesPart:
    """Some entries of a .json."""

    path: Path
    entries: Sequence[Any]

    @property
    def name(self) -> str:
        return shown_name(self.path.name)

    def samples(self, scratch: Path) -> Iterator[Sample]:
        for entry in self.entries:
            yield _entry(entry, self.path)


_IMAGE_KEYS, _TEXT_KEYS = ("file_name", "image", "path", "file"), ("caption", "text", "prompt")


def _entry(entry: Any, path: Path) -> Sample:
    if not isinstance(entry, Mapping):
        raise InvalidConfig(f'{path}: an image is {{"file_name": ..., "caption": ...}}, found {shown(entry)}')
    name = next((entry[key] for key in _IMAGE_KEYS if isinstance(entry.get(key), str)), None)
    if name is None:
        raise InvalidConfig(f"{path}: an entry without {' or '.join(_IMAGE_KEYS)}: {shown(dict(entry))}")
    text = next((entry[key] for key in _TEXT_KEYS if isinstance(entry.get(key), str)), None)
    file = path.parent / name
    beside = _beside(file, CAPTION, file.parent) if text is None else None
    marked = {mark: entry[mark] for mark in MARKS if isinstance(entry.get(mark), str)}
    return Sample(
        Member(shown_name(name), file),
        beside,
        entry if text is None else {**entry, "txt": text},
        **{mark: Member(shown_name(each), path.parent / each) for mark, each in marked.items()},
    )


def _marked(name: str) -> tuple[str, str] | None:
    """(name without mark and ending, mark) of a file of MARKS, None of another."""
    stem, _, ending = name.rpartition(".")
    base, _, mark = stem.rpartition(".")
    return (base, mark) if base and f".{ending.lower()}" in MARKS.get(mark, ()) else None


class Places:
    """All parts of some places: paths of folders, tars and lists, with braces, and remote ones.

    count: files with an ending that counts. stamp: a digest of their names, sizes and times, whose order does not
    matter. on_skip: told the name of a folder that cannot be listed, and of a hint or a mask without its image.

    Raises InvalidConfig: a place is not there, or too much is.
    """

    def __init__(self, places: Sequence[str], on_image: OnImage, on_skip: Callable[[str, Exception], None]) -> None:
        self.on_image, self.on_skip = on_image, on_skip
        try:
            found = [(each, number) for number, place in enumerate(places) for each in _all(place)]
        except ValueError as error:
            raise InvalidConfig(str(error)) from error
        self.places, self._given = [each for each, _ in found], [number for _, number in found]
        self._remote = {place: listed(place) for place in self.places if is_remote(place)}
        self.count, total = 0, 0
        for line in self._stamps():
            self.count += 1
            digest = hashlib.blake2b(line.encode("utf-8", "backslashreplace"), digest_size=16).digest()
            total = (total + int.from_bytes(digest, "big")) % (1 << 128)
        self.stamp = f"{self.count}-{total:032x}"

    def _stamps(self) -> Iterator[str]:
        for place in self.places:
            path = Path(place)
            if is_remote(place):
                yield from (version for _, version in self._remote[place])
            elif path.is_dir():
                for name, status in self._files(path):
                    yield f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
            elif path.is_file() and path.suffix.lower() in (TAR, LIST, METADATA):
                status = path.stat()
                yield f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}"
            else:
                raise InvalidConfig(f"{place}: no folder and no {TAR}, {LIST} or {METADATA} of images")

    def parts(self) -> list[Part]:
        """In an order that follows from the names."""
        return [part for part, _ in self.numbered_parts()]

    def numbered_parts(self) -> list[tuple[Part, int]]:
        """The parts, each with the number of the place that was given for it."""
        pairs = zip(self.places, self._given, strict=True)
        return [(part, number) for place, number in pairs for part in self._of(place)]

    def _of(self, place: str) -> Iterator[Part]:
        path = Path(place)
        if is_remote(place):
            yield from (RemotePart(tar) for tar, _ in self._remote[place])
        elif path.is_dir():
            names = sorted((name for name, _ in self._files(path)), key=lambda name: name.replace(os.sep, "\0"))
            marked = self._marked(names)
            wanted = (name for name in names if Path(name).suffix.lower() in (*IMAGES, TAR) and _marked(name) is None)
            for is_tar, group in itertools.groupby(wanted, lambda name: Path(name).suffix.lower() == TAR):
                if is_tar:
                    yield from (TarPart(path / name, shown_name(Path(name).as_posix())) for name in group)
                else:
                    yield from (FilesPart(path, some, marked) for some in _slices(group))
        elif path.suffix.lower() == TAR:
            yield TarPart(path, shown_name(path.name))
        elif path.suffix.lower() == LIST:
            yield from _lines(path)
        else:
            yield from (EntriesPart(path, some) for some in _slices(_json_list(path)))

    def _marked(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Name of an image without its ending -> mark -> name of its file. Those without an image are told."""
        found: dict[str, dict[str, str]] = {}
        for name in names:
            if (marked := _marked(name)) is not None:
                found.setdefault(marked[0], {})[marked[1]] = name
        if found:
            images = {name.rpartition(".")[0] for name in names if Path(name).suffix.lower() in IMAGES}
            for stem in found.keys() - images:
                for name in found[stem].values():
                    self.on_skip(shown_name(name), InvalidImage(f"there is no image {shown_name(stem)} beside it"))
        return found

    def members(self) -> Iterator[Member]:
        """All files with an ending that counts, and those in tars, of folders and tars of this machine.

        Raises InvalidConfig: a place is another. What of a tar cannot be read is told to `on_skip`.
        """
        for place in self.places:
            path = Path(place)
            if is_remote(place) or not (path.is_dir() or path.suffix.lower() == TAR):
                raise InvalidConfig(f"{place}: a folder or a {TAR} of this machine is needed")
            files = sorted(path / name for name, _ in self._files(path)) if path.is_dir() else [path]
            for file in files:
                name = shown_name(path.name if file == path else file.relative_to(path).as_posix())
                if file.suffix.lower() != TAR:
                    yield Member(name, file)
                    continue
                try:
                    yield from _in_tar(file, name)
                except BAD_TAR as error:
                    self.on_skip(name, error)

    def _files(self, folder: Path) -> Iterator[tuple[str, os.stat_result]]:
        """Those of a folder and its subfolders with an ending that counts, in no order; no hidden ones."""
        waiting, count = [""], 0
        while waiting:
            inside = waiting.pop()
            try:
                with os.scandir(folder / inside) as entries:
                    for entry in entries:
                        count += 1
                        self.on_image()
                        if count > ENTRIES:
                            raise InvalidConfig(
                                f"{folder}: more than {ENTRIES} files: give a folder that has only the images"
                            )
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(os.path.join(inside, entry.name))  # noqa: PTH118  a million of them
                        elif (status := _status(entry)) is not None:
                            yield os.path.join(inside, entry.name), status  # noqa: PTH118
            except OSError as error:
                self.on_skip(shown_name(inside or folder.name), error)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """None for what does not count, for what is no file, and for a link that leads nowhere."""
    if os.path.splitext(entry.name)[1].lower() not in LISTED:  # noqa: PTH122
        return None
    try:
        status = entry.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _all(place: str) -> list[str]:
    """What a place stands for: its braces, or the places that a .yaml lists."""
    if not is_remote(place) and Path(place).suffix.lower() in (".yml", ".yaml") and Path(place).is_file():
        data = yaml.safe_load(Path(place).read_text(encoding="utf-8"))
        if not isinstance(data, list) or not all(isinstance(each, str) for each in data):
            raise ValueError(f"{place}: a list of places is expected in it")
        return [one for each in data for one in expand(each.removeprefix("file:"))]
    return [place] if not is_remote(place) and Path(place).exists() else expand(place)


def missing_places(places: Sequence[str]) -> list[str]:
    """Those of this machine that are not there. Raises ValueError for braces that stand for too many."""
    return [each for place in places for each in _all(place) if not is_remote(each) and not Path(each).exists()]


def _slices(items: Any) -> Iterator[list[Any]]:
    items = iter(items)
    while some := list(itertools.islice(items, PART)):
        yield some


def _lines(path: Path) -> Iterator[LinesPart]:
    with path.open("rb") as file:
        start, position, count = 0, 0, 0
        for line in file:
            position, count = position + len(line), count + 1
            if count == PART:
                yield LinesPart(path, start, count)
                start, count = position, 0
        if count:
            yield LinesPart(path, start, count)


def _json_list(path: Path) -> list[Any]:
    """A list of entries, or a table of them by the image's name."""
    if path.stat().st_size > LIST_BYTES:
        raise InvalidConfig(f"{path}: more than {LIST_BYTES >> 30} GB; write it as {LIST}, one entry in a line")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path}: no JSON: {error}") from error
    if isinstance(data, Mapping):
        return [
            {"file_name": name, **(each if isinstance(each, Mapping) else {"caption": each})}
            for name, each in data.items()
        ]
    if not isinstance(data, list):
        raise InvalidConfig(f"{path}: a list of images is expected in it")
    return data


def shown_name(name: str) -> str:
    """A name in one line. Those of files need not be UTF-8, and may hold line breaks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class _Headers(io.FileIO):
    """A tar of which only headers are read, none larger than HEADER_BYTES."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _in_tar(path: Path, name: str) -> Iterator[Member]:
    """Where the members of an uncompressed tar lie: they are then read without it. Raises BAD_TAR."""
    with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        end = 0
        for info in tar:
            if info.size < 0:
                raise tarfile.ReadError("a member of less than 0 bytes")
            if info.isfile() and not info.issparse():
                yield Member(shown_name(f"{name}/{info.name}"), path, info.offset_data, info.size)
            tar.members = []  # type: ignore[attr-defined]  # which else keeps them all
            end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if path.stat().st_size < end + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it ends in the middle, without the mark of its end")


def _grouped(members: Iterator[Member]) -> Iterator[Sample]:
    """The images of a tar with what has the same name. All members are listed first, as texts may lie anywhere; where
    the tar ends in the middle, its images until there come before the error."""
    beside: dict[str, dict[str, Member]] = {}
    images: list[tuple[str, Member]] = []
    broken: Exception | None = None
    try:
        for member in members:
            stem, dot, ending = member.name.rpartition(".")
            ending = (dot + ending).lower()
            if (marked := _marked(member.name)) is not None:
                beside.setdefault(marked[0], {})[marked[1]] = member
            elif ending in (CAPTION, METADATA):
                beside.setdefault(stem, {})[ending] = member
            elif ending in IMAGES:
                images.append((stem, member))
    except BAD_TAR as error:
        broken = error
    for stem, image in images:
        found = beside.get(stem, {})
        yield Sample(image, found.get(CAPTION), found.get(METADATA), *(found.get(mark) for mark in MARKS))
    if broken is not None:
        raise broken
