"""What is computed once from images, kept on disk in shards: an interrupted run goes on behind the last shard."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from ..errors import BrokenCheckpoint, InvalidConfig, one_line
from ..files import open_regular, remove_abandoned, write_atomically
from .folders import FolderImages, Seen, stacked
from .lock import writing
from .metadata import CaptionSettings
from .processes import Processes

log = logging.getLogger("cascade")

CHUNK = 256
"""Images of a shard."""
INDEX_FILE = "index.json"
INDEX_BYTES = 1 << 28
_TEXTS, _EXTENTS, _DIGESTS = "texts", "extents", "digests"
_OPEN = 64
"""Shards that are held open."""
_VERSION = 1
CHECKED_BYTES = 1 << 28
"""Of a cache that is checked at every start, in less than a second."""

OnChunk = Callable[[int, int], None]
Compute = Callable[[np.ndarray], dict[str, np.ndarray]]

# What a damaged index or shard raises.
_DAMAGED = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, SafetensorError)


class ImageSource(Protocol):
    """A fixed set of images with captions, all of one size."""

    size: int
    name: str
    """Names the content: two sources of one name hold the same images."""

    def __len__(self) -> int: ...

    def read(self, start: int, count: int) -> tuple[np.ndarray, list[str]]:
        """Images start to start + count as uint8 [n, size, size, 3], and their captions."""
        ...


class Shard(NamedTuple):
    """A file of a cache. rows: how many of each size, HxW, it has. length and digest: of the file."""

    file: str
    rows: Mapping[str, int]
    length: int
    digest: str


class Cache:
    """Arrays with a row for each image, read from shards on disk, and the images' texts.

    Rows are numbered by size, the most frequent one first, and within a size as the images lie in the shards.

    source: names the content. problems: lines about images that were left out. repeats, loss_weights: of each place
    that was given; empty where all images count alike.
    """

    repeats: Sequence[int] = ()
    loss_weights: Sequence[float] = ()

    def __init__(self, place: Path, settings: CaptionSettings) -> None:
        """Raises one of _DAMAGED where something is not there or is no such cache."""
        with open_regular(place / INDEX_FILE) as file:
            index = json.loads(file.read(INDEX_BYTES))
        if index["version"] != _VERSION:
            raise ValueError("a cache of another version")
        self.place, self.settings = place, settings
        self.source, self.problems = str(index["source"]), [str(line) for line in index["problems"]]
        self.shards = [Shard(*each) for each in index["shards"]]
        self._places = [int(each) for each in index.get("places", [0] * len(self.shards))]
        for shard in self.shards:
            if (place / shard.file).stat().st_size != shard.length:
                raise ValueError(f"{shard.file} has another size than it was written with")
        counts: dict[str, int] = {}
        for shard in self.shards:
            for size, rows in shard.rows.items():
                counts[size] = counts.get(size, 0) + int(rows)
        self.sizes = sorted(counts, key=lambda size: (-counts[size], size))
        self.counts = [counts[size] for size in self.sizes]
        self._first = np.cumsum([0, *self.counts])
        self._edges = [np.cumsum([0, *(shard.rows.get(size, 0) for shard in self.shards)]) for size in self.sizes]
        self._open: OrderedDict[int, tuple[Any, dict[str, list[list[str | None]]]]] = OrderedDict()
        if not self.counts:
            raise ValueError("it has no images")
        self._shard(self._find(0)[0])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def captions(self) -> Captions:
        """The first text of each row."""
        return Captions(self)

    def _shard(self, number: int) -> tuple[Any, dict[str, list[list[str | None]]]]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        path, sizes = self.place / self.shards[number].file, self.shards[number].rows
        try:
            file = safe_open(path, framework="np")
            texts = {size: json.loads(file.get_tensor(f"{_TEXTS}@{size}").tobytes()) for size in sizes}
        except _DAMAGED as error:
            raise BrokenCheckpoint(
                "this part of a cache is damaged; `python -m cascade prepare` mends it", path
            ) from error
        self._open[number] = file, texts
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return self._open[number]

    def _find(self, row: int) -> tuple[int, str, int]:
        """Shard, size and place in it of a row."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        size = int(np.searchsorted(self._first, row, side="right")) - 1
        row -= int(self._first[size])
        shard = int(np.searchsorted(self._edges[size], row, side="right")) - 1
        return shard, self.sizes[size], row - int(self._edges[size][shard])

    def rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Some rows of an array; they are of one size."""
        found = []
        for row in rows.tolist():
            shard, size, place = self._find(row)
            found.append(self._shard(shard)[0].get_slice(f"{name}@{size}")[place])
        return np.stack(found) if found else self.rows(name, np.zeros(1, np.int64))[:0]

    def take(self, name: str, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Some rows of an array as a tensor of the array's own type; they are of one size."""
        return torch.from_numpy(self.rows(name, rows)).to(device)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a row, for the images of the most frequent size."""
        shard, size, _ = self._find(0)
        return tuple(self._shard(shard)[0].get_slice(f"{name}@{size}").get_shape()[1:])

    def first(self, count: int) -> np.ndarray:
        """Rows of the first images, of one size."""
        return np.arange(min(count, self.counts[0]))

    def texts_of(self, row: int) -> list[str | None]:
        shard, size, place = self._find(row)
        return self._shard(shard)[1][size][place]

    def texts(self, rows: np.ndarray, seed: Sequence[int]) -> list[str]:
        """The texts of some rows, as they are seen this time."""
        random = np.random.default_rng(tuple(seed))
        return [self.settings.choose(self.texts_of(row), random) for row in rows.tolist()]

    def has(self, name: str) -> bool:
        """Whether there is an array of this name."""
        shard, size, _ = self._find(0)
        return f"{name}@{size}" in self._shard(shard)[0].keys()  # noqa: SIM118  it is no mapping

    def weights(self, rows: np.ndarray) -> np.ndarray | None:
        """[n]: how much the losses of some rows count; None where all count alike."""
        if not self.loss_weights:
            return None
        return np.array([self.loss_weights[self._places[self._find(row)[0]]] for row in rows.tolist()], np.float32)

    def all_repeats(self) -> np.ndarray | None:
        """How often each row is seen in an epoch; None for once."""
        if not self.repeats:
            return None
        each = np.array([self.repeats[place] for place in self._places])
        return np.concatenate(
            [np.repeat(each, [shard.rows.get(size, 0) for shard in self.shards]) for size in self.sizes]
        )

    def extents(self, rows: np.ndarray) -> np.ndarray:
        """[n, 2]: how much of each image's size is enlargement, log2, and which share of it is cut away."""
        return self.rows(_EXTENTS, rows)


class Captions(Sequence[str]):
    """The first text of each image of a cache, read when it is asked for."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        if isinstance(key, slice):
            return [self[row] for row in range(*key.indices(len(self)))]
        texts = self.cache.texts_of(key + len(self) if key < 0 else key)
        return next(text for text in texts if text is not None)


class _Drawn:
    """A source that makes its images."""

    def __init__(self, source: ImageSource) -> None:
        self.source, self.total = source, len(source)
        self.parts = range(0, self.total, CHUNK)

    def done(self, part: int) -> int:
        """Of `total`, once part number `part` is."""
        return min((part + 1) * CHUNK, self.total)

    def read(self, start: int, scratch: Path) -> Iterator[Seen]:
        images, texts = self.source.read(start, min(CHUNK, self.total - start))
        yield from (Seen(image, [text]) for image, text in zip(images, texts, strict=True))

    def told(self) -> dict[str, Any]:
        return {}

    def finish(self, digest: str, rows: int, told: Sequence[Any]) -> tuple[str, list[str]]:
        return self.source.name, []

    def place_of(self, part: int) -> int:
        return 0


class _Found:
    """Files that people have."""

    def __init__(self, source: FolderImages) -> None:
        self.source, self.parts = source, source.parts()
        self.total = len(self.parts)
        self.listing = source.told()
        self.read, self.told = source.read, source.told

    def done(self, part: int) -> int:
        return part + 1

    def finish(self, digest: str, rows: int, told: Sequence[Any]) -> tuple[str, list[str]]:
        for each in (self.listing, *told):
            self.source.tell(each)
        return f"folder-{digest[:16]}", self.source.problems(rows)

    def place_of(self, part: int) -> int:
        return self.source.place_of[part]


def cached(
    folder: Path,
    kind: str,
    source: ImageSource | FolderImages,
    compute: Compute,
    *,
    key: str = "",
    on_chunk: OnChunk | None = None,
) -> Cache:
    """What `compute` (pixels uint8 [n, h, w, 3] -> arrays with n rows) makes of all images, from disk if there.

    `key` names what else `compute` depends on (the encoder's weights, sizes). A cache that was interrupted is
    continued, one that was damaged since is mended. Several processes share the work inside of `shared`.

    Raises NotWritable, InvalidConfig.
    """
    digest = hashlib.sha256(json.dumps([kind, source.name, key]).encode()).hexdigest()[:16]
    place = folder / f"{kind}-{digest}"
    captions = source.captions if isinstance(source, FolderImages) else CaptionSettings()
    if len({*_shared.processes.gather(place.name)}) > 1:
        raise InvalidConfig(f"{folder}: the processes see different images: names, sizes or times of files differ")
    found = _opened(place, captions)
    if found is not None and _shared.processes.first and _to_check(found) and (wrong := verify(place)):
        log.warning("%s: damaged, and made again: %s", place, ", ".join(wrong))
        found = None
    # All processes must decide alike: one may still look while another already writes.
    if any(_shared.processes.gather(found is None)):
        _build(place, source, compute, on_chunk)
        found = Cache(place, captions)
        for line in found.problems:
            log.warning("%s", line)
    assert found is not None
    if isinstance(source, FolderImages):
        log.info("%s: %d images", source.shown, len(found))
    if _shared.check:
        _shared.caches.append(found)
    return found


class _One:
    """A process by itself."""

    rank, size, first = 0, 1, True

    def gather(self, value: Any) -> list[Any]:
        return [value]


class _Shared(NamedTuple):
    """Who makes caches, whether those that are there are checked, and which ones were opened."""

    processes: Any
    check: bool
    caches: list[Cache]


_shared = _Shared(_One(), False, [])


@contextmanager
def shared(processes: Processes, *, check: bool = False) -> Iterator[list[Cache]]:
    """While it is open, all processes make caches together, each its parts; those that were opened.

    check: every byte of those that were there is checked.
    """
    global _shared
    before, _shared = _shared, _Shared(processes, check, [])
    try:
        yield _shared.caches
    finally:
        _shared = before


def shared_processes() -> Any:
    """Those that make caches together now."""
    return _shared.processes


def _opened(place: Path, captions: CaptionSettings) -> Cache | None:
    if not place.exists():
        return None
    try:
        return Cache(place, captions)
    except FileNotFoundError:
        log.info("%s: this cache is not complete, and is continued", place)
    except (*_DAMAGED, BrokenCheckpoint) as error:
        log.warning("%s: this cache is damaged and made again: %s", place, one_line(str(error)))
    return None


def _to_check(cache: Cache) -> bool:
    """Whether every byte is read before it is used: of small ones always."""
    return _shared.check or sum(shard.length for shard in cache.shards) <= CHECKED_BYTES


def verify(place: Path) -> list[str]:
    """Files of a complete cache whose content is not what was written. Raises one of _DAMAGED."""
    with open_regular(place / INDEX_FILE) as file:
        shards = [Shard(*each) for each in json.loads(file.read(INDEX_BYTES))["shards"]]
    wrong = []
    for shard in shards:
        try:
            if fingerprint(place / shard.file) != shard.digest:
                wrong.append(shard.file)
        except OSError:
            wrong.append(shard.file)
    return wrong


def fingerprint(path: Path) -> str:
    """A short name of a file's content."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def _build(place: Path, source: ImageSource | FolderImages, compute: Compute, on_chunk: OnChunk | None) -> None:
    work: Any = _Found(source) if isinstance(source, FolderImages) else _Drawn(source)
    with writing(place.parent):
        if _shared.processes.first:
            _clear(place)
        _shared.processes.gather(None)
        scratch = place / f"scratch-{_shared.processes.rank}"
        try:
            for number, part in enumerate(work.parts):
                if number % _shared.processes.size == _shared.processes.rank and not _is_whole(place, number):
                    _write_part(place, number, work, part, scratch, compute)
                if on_chunk is not None:
                    on_chunk(work.done(number), work.total)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        _shared.processes.gather(None)
        if _shared.processes.first:
            _write_index(place, work)
        _shared.processes.gather(None)


def _clear(place: Path) -> None:
    """Remove what is damaged of a cache that is made again, and its index."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        place.unlink()
    place.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place)
    index = place / INDEX_FILE
    if not (index.is_symlink() or index.exists()):
        return
    try:
        wrong = verify(place)
    except _DAMAGED:
        wrong = [path.name for path in place.iterdir()]
    for name in [*wrong, INDEX_FILE]:
        path = place / Path(name).name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _file(place: Path, part: int, number: int) -> Path:
    return place / f"{part:07d}-{number:05d}.safetensors"


def _header(path: Path) -> dict[str, Any] | None:
    """What is said of a shard in it; None where there is none."""
    try:
        with safe_open(path, framework="np") as file:
            return json.loads(file.metadata()["shard"])
    except _DAMAGED:
        return None


def _is_whole(place: Path, part: int) -> bool:
    for number in itertools.count():
        header = _header(_file(place, part, number))
        if header is None or header["last"]:
            return header is not None
    return False


def _write_part(place: Path, part: int, work: Any, content: Any, scratch: Path, compute: Compute) -> None:
    images = work.read(content, scratch)
    waiting = list(itertools.islice(images, CHUNK))
    for number in itertools.count():
        following = list(itertools.islice(images, CHUNK))
        path = _file(place, part, number)
        if following and _header(path) is not None:  # of a run that was interrupted
            waiting = following
            continue
        header = {"last": not following, "told": None if following else work.told()}
        tensors, header["rows"] = _computed(waiting, compute)
        data = save(tensors, metadata={"shard": json.dumps(header)})
        write_atomically(path, lambda temporary, data=data: temporary.write_bytes(data))
        if not following:
            return
        waiting = following


def _computed(images: list[Seen], compute: Compute) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The tensors of a shard by name and size, and how many images of each size there are."""
    by_size: dict[str, list[Seen]] = {}
    for seen in images:
        by_size.setdefault("x".join(map(str, np.shape(seen.pixels)[:2])) or "0", []).append(seen)
    tensors: dict[str, np.ndarray] = {}
    for size, group in by_size.items():
        made = {**compute(np.stack([seen.pixels for seen in group])), **stacked(group)}
        texts = json.dumps([seen.texts for seen in group]).encode()
        made[_TEXTS] = np.frombuffer(texts, np.uint8)
        made[_EXTENTS] = np.array([(seen.enlarged, seen.cut) for seen in group], np.float32)
        if any(seen.digest for seen in group):
            made[_DIGESTS] = np.frombuffer(b"".join(seen.digest for seen in group), np.uint8).reshape(len(group), -1)
        tensors |= {f"{name}@{size}": np.ascontiguousarray(array) for name, array in made.items()}
    return tensors, {size: len(group) for size, group in by_size.items()}


def _write_index(place: Path, work: Any) -> None:
    """Raises InvalidConfig where a part is missing, or no image could be read."""
    if missing := [number for number in range(len(work.parts)) if not _is_whole(place, number)]:
        raise InvalidConfig(f"{place}: {len(missing)} parts are not there: is it on a disk that all processes see?")
    shards, places, told, size = [], [], [], getattr(work.source, "size", 0)
    content = hashlib.sha256(str(size).encode())
    for path in sorted(place.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["shard"])
            for each in sorted(header["rows"]):
                _add_content(content, file, each)
        shards.append(Shard(path.name, header["rows"], path.stat().st_size, fingerprint(path)))
        places.append(work.place_of(int(path.name[:7])))
        told += [header["told"]] if header["told"] else []
    rows = sum(sum(shard.rows.values()) for shard in shards)
    source, problems = work.finish(content.hexdigest(), rows, told)
    index = {"version": _VERSION, "source": source, "problems": problems, "shards": shards, "places": places}
    write_atomically(place / INDEX_FILE, lambda path: path.write_text(json.dumps(index), encoding="utf-8"))


def _add_content(content: Any, file: Any, size: str) -> None:
    if f"{_DIGESTS}@{size}" not in file.keys():  # noqa: SIM118  it is no mapping
        return
    texts = json.loads(file.get_tensor(f"{_TEXTS}@{size}").tobytes())
    for digest, each in zip(file.get_tensor(f"{_DIGESTS}@{size}"), texts, strict=True):
        content.update(digest.tobytes() + "\0".join(text or "" for text in each).encode() + b"\0")
