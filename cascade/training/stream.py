"""Images that are read and encoded as they come: nothing but a list of each tar is kept.

A training has as many streams as a step has micro-batches over all processes, and a micro-batch is of the stream of its
number: the same data come, in the same order, from one process or from several. Each stream reads tars of its own; with
fewer tars than streams all read all, each in its own order. Which images a batch has follows from its number and from
the lists of the tars before it, which lie on disk: a run that goes on reads these again, and no image.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidConfig, InvalidImage
from ..files import write_atomically
from .cache import Compute
from .folders import FolderImages, Seen, stacked
from .listing import Member, RemotePart, Sample, TarPart
from .lock import writing
from .processes import Processes
from .remote import fetch

log = logging.getLogger("cascade")

_AHEAD = 2
"""Batches that are decoded before they are asked for."""
_THREADS = min(16, os.cpu_count() or 1)
_SAMPLES = 8
"""Images that samples and their prompts come from."""


class Visit(NamedTuple):
    """One look at an image: the part it is in, its place in the part, the epoch, and the bucket."""

    part: int
    place: int
    epoch: int
    bucket: int

    @property
    def row(self) -> int:
        """A number for it, as rows of a cache have."""
        return (self.part << 40) + (self.place << 16) + self.epoch % (1 << 16)


class Planned(NamedTuple):
    """A batch: its images, and the parts that come after those that they are from."""

    visits: tuple[Visit, ...]
    following: tuple[int, ...]


class Streamed:
    """The counterpart of a Cache for images that are computed as they come.

    source: names the images; their content is not known. shuffle: parts that are mixed at a time. repeats,
    loss_weights: of each place that was given; empty where all images count alike.
    """

    repeats: Sequence[int] = ()
    loss_weights: Sequence[float] = ()

    def __init__(self, images: FolderImages, compute: Compute, folder: Path, shuffle: int) -> None:
        self.images, self.compute, self.shuffle = images, compute, shuffle
        self.source, self.problems = f"stream-{images.name}", list[str]()
        self.settings = images.captions
        self.parts = images.parts()
        where = json.dumps([images.name, [str(Path(place).absolute()) for place in images.places.places]])
        self.folder = folder / hashlib.sha256(where.encode()).hexdigest()[:16]
        self._scratch = self.folder / f"process-{Processes().rank}"
        self._lists: OrderedDict[int, list[tuple[Sample, int]]] = OrderedDict()
        self._local: OrderedDict[int, Future[Path]] = OrderedDict()
        self._loaded: dict[int, int] = {}
        self._seen: list[Seen] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._decoding: OrderedDict[tuple[Visit, ...], list[Future[Seen | None]]] = OrderedDict()
        self._pool, self._fetchers = ThreadPoolExecutor(_THREADS), ThreadPoolExecutor(_THREADS)
        self._first: tuple[Visit, ...] | None = None

    def list_of(self, part: int) -> list[tuple[Sample, int]]:
        """The images of a part that the filters leave, each with its bucket.

        Raises InvalidConfig for a tar that cannot be had, NotWritable.
        """
        if part not in self._lists:
            path = self.folder / f"{part:07d}.json"
            try:
                lines = json.loads(path.read_bytes())
            except (OSError, ValueError):
                lines = [self._line(sample) for sample in self._samples(part)]
                lines = [line for line in lines if line is not None]
                with writing(self.folder):
                    text = json.dumps(lines)
                    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            self._lists[part] = [(_sample(*line[:3], *line[4:]), int(line[3])) for line in lines]
            while len(self._lists) > 4 * self.shuffle:
                self._lists.popitem(last=False)
        self._lists.move_to_end(part)
        return self._lists[part]

    def _samples(self, part: int) -> Iterator[Sample]:
        found: Any = self.parts[part]
        if isinstance(found, RemotePart):
            found = TarPart(self.local(part), found.name)
        return self.images.samples(found, self._scratch)

    def _line(self, sample: Sample) -> list[Any] | None:
        try:
            bucket = self.images.look(sample)
        except (InvalidImage, OSError) as error:
            self._note(sample.image.name, error)
            return None
        if bucket is None:
            return None
        metadata = sample.metadata
        return [
            _described(sample.image),
            None if sample.text is None else _described(sample.text),
            _described(metadata) if isinstance(metadata, Member) else metadata,
            bucket,
            *(None if each is None else _described(each) for each in sample[3:]),
        ]

    def _note(self, name: str, error: Exception) -> None:
        if name not in self.images.skipped:
            self.images.skipped[name] = str(error)
            log.warning("%s: left out, it cannot be read: %s", name, error)

    def local(self, part: int, *, wait: bool = True) -> Path:
        """Where a remote tar lies here, once it has come. Raises InvalidConfig, NotWritable."""
        if part not in self._local:
            self._local[part] = self._fetchers.submit(fetch, self.parts[part].name, self._scratch)
        return self._local[part].result() if wait else self._scratch

    def keep(self, parts: Sequence[int]) -> None:
        """Fetch these tars in the background, and remove those that are longest not asked for."""
        for part in parts:
            if isinstance(self.parts[part], RemotePart):
                self.local(part, wait=False)
                self._local.move_to_end(part)
        while len(self._local) > 3 * self.shuffle * self.streams:
            _, future = self._local.popitem(last=False)
            future.add_done_callback(lambda done: None if done.exception() else done.result().unlink(missing_ok=True))

    streams = 1
    """Of this process."""

    def decode(self, visits: tuple[Visit, ...]) -> list[Future[Seen | None]]:
        """Begin to read the images of a batch."""
        if visits not in self._decoding:
            self._decoding[visits] = [
                self._pool.submit(self._see, self.list_of(visit.part)[visit.place][0], visit) for visit in visits
            ]
            while len(self._decoding) > 2 * _AHEAD + 1:
                self._decoding.popitem(last=False)
        return self._decoding[visits]

    def _see(self, sample: Sample, visit: Visit) -> Seen | None:
        if isinstance(self.parts[visit.part], RemotePart):
            path = self.local(visit.part)
            here: list[Any] = [replace(each, path=path) if isinstance(each, Member) else each for each in sample]
            sample = Sample(*here)
        try:
            random = np.random.default_rng((visit.part, visit.place, visit.epoch))
            return self.images.see(sample, random, visit.bucket)
        except (InvalidImage, OSError) as error:
            self._note(sample.image.name, error)
            return None

    def load(self, visits: tuple[Visit, ...]) -> np.ndarray:
        """Compute a batch; numbers of its images for `take`. One that cannot be read is replaced by another of them.

        Raises InvalidConfig: none can be read.
        """
        found = [future.result() for future in self.decode(visits)]
        good = [seen for seen in found if seen is not None]
        if not good:
            names = [self.list_of(visit.part)[visit.place][0].image.name for visit in visits]
            reason = self.images.skipped.get(names[0], "left out by a filter")
            raise InvalidConfig(f"none of the {len(visits)} images of a batch can be read; {names[0]}: {reason}")
        self._seen = [good[place % len(good)] if seen is None else seen for place, seen in enumerate(found)]
        self._arrays = {**self.compute(np.stack([seen.pixels for seen in self._seen])), **stacked(self._seen)}
        rows = [visit.row for visit in visits]
        self._loaded = {row: place for place, row in enumerate(rows)}
        return np.array(rows)

    def _places(self, rows: np.ndarray) -> list[int]:
        return [self._loaded[row] for row in rows.tolist()]

    def take(self, name: str, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Some rows of an array, of the batch that was loaded last."""
        return torch.from_numpy(np.ascontiguousarray(self._arrays[name][self._places(rows)])).to(device)

    def texts(self, rows: np.ndarray, seed: Sequence[int]) -> list[str]:
        """The texts of some rows, as they are seen this time."""
        random = np.random.default_rng(tuple(seed))
        return [self.settings.choose(self._seen[place].texts, random) for place in self._places(rows)]

    def has(self, name: str) -> bool:
        """Whether there is an array of this name, of the batch that was loaded last."""
        return name in self._arrays

    def weights(self, rows: np.ndarray) -> np.ndarray | None:
        """[n]: how much the losses of some rows count; None where all count alike."""
        if not self.loss_weights:
            return None
        places = [self.images.place_of[row >> 40] for row in rows.tolist()]
        return np.array([self.loss_weights[place] for place in places], np.float32)

    def repeats_of(self, part: int) -> int:
        """How often each image of a part is seen in an epoch."""
        return self.repeats[self.images.place_of[part]] if self.repeats else 1

    def extents(self, rows: np.ndarray) -> np.ndarray:
        """[n, 2]: how much of each image's size is enlargement, log2, and which share of it is cut away."""
        found = [(self._seen[place].enlarged, self._seen[place].cut) for place in self._places(rows)]
        return np.array(found, np.float32).reshape(-1, 2)

    def first(self, count: int) -> np.ndarray:
        """Rows of the first images of the most frequent size, which are loaded."""
        if self._first is None:
            for part in range(len(self.parts)):
                listed = self.list_of(part)
                if listed:
                    [(bucket, _)] = Counter(bucket for _, bucket in listed).most_common(1)
                    places = [place for place, (_, own) in enumerate(listed) if own == bucket]
                    self._first = tuple(Visit(part, place, 0, bucket) for place in places[:_SAMPLES])
                    break
            else:
                raise self.nothing()
        return self.load(self._first[:count])

    def nothing(self) -> InvalidConfig:
        return InvalidConfig(f"{self.images.shown}: no images there that can be read and that the filters leave")

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a row, for the images of the most frequent size."""
        self.first(1)
        return self._arrays[name].shape[1:]

    @property
    def captions(self) -> list[str]:
        """Of the first images."""
        return [
            next(text for text in self._seen[place].texts if text is not None)
            for place in self._places(self.first(_SAMPLES))
        ]


def _described(member: Member) -> list[Any]:
    return [member.name, str(member.path), member.start, member.length]


def _sample(image: list[Any], text: list[Any] | None, metadata: Any, *marked: list[Any] | None) -> Sample:
    return Sample(
        _member(image),
        None if text is None else _member(text),
        _member(metadata) if isinstance(metadata, list) else metadata,
        *(None if each is None else _member(each) for each in marked),
    )


def _member(described: list[Any]) -> Member:
    name, path, start, length = described
    return Member(name, Path(path), start, length)


class StreamOrder:
    """The order of streams: which images a batch has follows from its number.

    streams: micro-batches of a step over all processes. `held_out` are the first images of the first part.
    """

    def __init__(self, data: Streamed, seed: int, held_out: int, streams: int) -> None:
        self.data, self.seed, self.count_held_out, self.streams = data, seed, held_out, streams
        self.processes = Processes().size
        data.streams = max(1, streams // self.processes)
        if held_out and held_out >= len(data.list_of(0)):
            raise InvalidConfig("held_out: of a stream they are the first images of its first part, which has fewer")
        self._at: dict[int, tuple[int, Iterator[Planned]]] = {}
        self._plans: OrderedDict[int, Planned] = OrderedDict()

    def held_out(self) -> _HeldOut:
        """The images that are left out here."""
        return _HeldOut(self.data, self.count_held_out)

    def rows(self, index: int, count: int) -> np.ndarray:
        """The images of batch number `index` of `count` images, of one size, which are loaded."""
        plans = [self._plan(index + ahead * self.processes, count) for ahead in range(_AHEAD + 1)]
        for plan in plans:
            self.data.keep([*dict.fromkeys(visit.part for visit in plan.visits), *plan.following])
            self.data.decode(plan.visits)
        return self.data.load(plans[0].visits)

    def names(self, index: int, count: int) -> list[str]:
        """Of the images of batch number `index`."""
        return [self.data.list_of(visit.part)[visit.place][0].image.name for visit in self._plan(index, count).visits]

    def _plan(self, index: int, count: int) -> Planned:
        if index in self._plans and len(self._plans[index].visits) == count:
            return self._plans[index]
        stream, number = index % self.streams, index // self.streams
        at, batches = self._at.get(stream, (0, None))
        if batches is None or at > number:
            at, batches = 0, self._batches(stream, count)
        plan = next(itertools.islice(batches, number - at, None))
        self._at[stream] = number + 1, batches
        self._plans[index] = plan
        while len(self._plans) > 4 * (_AHEAD + 1):
            self._plans.popitem(last=False)
        return plan

    def _batches(self, stream: int, count: int) -> Iterator[Planned]:
        """All batches of a stream, from the first one on."""
        waiting: dict[int, list[Visit]] = {}
        shuffle, empty = self.data.shuffle, 0
        for epoch in itertools.count():
            parts, found = self._parts(stream, epoch), False
            for start in range(0, len(parts), shuffle):
                following = tuple(parts[start + shuffle : start + 2 * shuffle])
                for visit in self._mixed(parts[start : start + shuffle], stream, epoch, start):
                    found = True
                    queue = waiting.setdefault(visit.bucket, [])
                    queue.append(visit)
                    if len(queue) == count:
                        yield Planned(tuple(waiting.pop(visit.bucket)), following)
            empty = 0 if found else empty + 1
            if empty > len(self.data.parts):
                raise InvalidConfig(
                    f"{self.data.images.shown}: no images there that can be read and that the filters leave"
                )

    def _parts(self, stream: int, epoch: int) -> list[int]:
        count = len(self.data.parts)
        if count < self.streams:
            return np.random.default_rng((self.seed, epoch, stream)).permutation(count).tolist()
        return np.random.default_rng((self.seed, epoch)).permutation(count)[stream :: self.streams].tolist()

    def _mixed(self, parts: Sequence[int], stream: int, epoch: int, start: int) -> Iterator[Visit]:
        buckets = [np.array([bucket for _, bucket in self.data.list_of(part)], np.int64) for part in parts]
        skip = [self.count_held_out if part == 0 else 0 for part in parts]
        seen = [
            np.tile(np.arange(n, max(n, len(b))), self.data.repeats_of(part))
            for part, b, n in zip(parts, buckets, skip, strict=True)
        ]
        owner, place = np.repeat(np.arange(len(seen)), [len(each) for each in seen]), np.concatenate(seen)
        random = np.random.default_rng((self.seed, epoch, stream, start))
        ratio, sizes = self.data.images.random_ratio, len(self.data.images.sizes)
        for each in random.permutation(len(owner)).tolist():
            part, at = int(owner[each]), int(place[each])
            bucket = int(buckets[part][at])
            if ratio > 0 and random.random() < ratio:
                bucket = int(random.integers(sizes))
            yield Visit(parts[part], at, epoch, bucket)


class _HeldOut:
    """The first images of the first part, in batches of one size."""

    def __init__(self, data: Streamed, held_out: int) -> None:
        self.data = data
        listed = data.list_of(0)[:held_out]
        self.visits = [Visit(0, place, 0, bucket) for place, (_, bucket) in enumerate(listed)]

    def rows(self, index: int, count: int) -> np.ndarray:
        by_size: dict[int, list[Visit]] = {}
        for visit in self.visits:
            by_size.setdefault(visit.bucket, []).append(visit)
        batches = [group[i : i + count] for group in by_size.values() for i in range(0, len(group), count)]
        chosen = batches[index % len(batches)]
        return self.data.load(tuple(chosen[place % len(chosen)] for place in range(count)))
