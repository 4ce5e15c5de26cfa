"""The order in which images are seen: which ones a batch has follows from its number alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..errors import InvalidConfig

_HELD_OUT = 1 << 40
"""A part of a seed that no epoch has."""


class Order:
    """All images once an epoch, each epoch in its own order; any position can be asked for.

    `held_out` of them, chosen by the seed, are left out. `repeats` says how often an epoch has each.
    Raises InvalidConfig where none is left.
    """

    def __init__(self, length: int, seed: int, held_out: int = 0, repeats: np.ndarray | None = None) -> None:
        if held_out >= length:
            raise InvalidConfig(f"held_out: {held_out} of {length} images leaves none to train on")
        self.seed = seed
        self.epochs: dict[int, np.ndarray] = {}
        shuffled = np.random.default_rng((seed, _HELD_OUT)).permutation(length) if held_out else np.arange(length)
        self.images, self.left_out = np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])
        if repeats is not None:
            self.images = np.repeat(self.images, repeats[self.images])
        self.length = len(self.images)

    def held_out(self) -> Order:
        """The order of the images that are left out here."""
        order = Order(len(self.left_out), self.seed)
        order.images = self.left_out
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


class BucketOrder:
    """An Order for each size of images, so that a batch is of one size: `counts` images of each, one after the other.

    The sizes take turns by chance, each as often as its images want: over the epochs every image is seen equally often.
    A size with fewer images than a batch has some of them twice in it, and such a batch comes the more rarely.
    `repeats` says how often an epoch has each image.
    """

    def __init__(self, counts: Sequence[int], seed: int, held_out: int = 0, repeats: np.ndarray | None = None) -> None:
        self.seed = seed
        chosen = Order(sum(counts), seed, held_out).left_out
        edges = np.cumsum([0, *counts])
        ranges = list(itertools.pairwise(edges.tolist()))
        self._left_out = [chosen[(chosen >= a) & (chosen < b)] for a, b in ranges]
        images = [
            np.setdiff1d(np.arange(a, b), out, assume_unique=True)
            for (a, b), out in zip(ranges, self._left_out, strict=True)
        ]
        if repeats is not None:
            images = [np.repeat(each, repeats[each]) for each in images]
        self.orders = [_of(each, seed) for each in images if len(each)]

    def held_out(self) -> BucketOrder:
        """The order of the images that are left out here."""
        order = BucketOrder.__new__(BucketOrder)
        order.seed = self.seed
        order.orders = [_of(each, self.seed) for each in self._left_out if len(each)]
        return order

    def rows(self, index: int, count: int) -> np.ndarray:
        """The images of batch number `index` of `count` images, of one size."""
        lengths = np.array([order.length for order in self.orders], np.int64)

        def before(epoch: int) -> np.ndarray:
            """Batches of each size that are full before an epoch."""
            return epoch * lengths // count

        epoch = max(0, index * count // int(lengths.sum()) - 1)
        while before(epoch + 1).sum() <= index:
            epoch += 1
        first, last = before(epoch), before(epoch + 1)
        turns = np.repeat(np.arange(len(lengths)), last - first)
        turns = turns[np.random.default_rng((self.seed, epoch, 1)).permutation(len(turns))]
        place = index - int(first.sum())
        size = int(turns[place])
        return self.orders[size].rows(int(first[size]) + int((turns[:place] == size).sum()), count)


def _of(images: np.ndarray, seed: int) -> Order:
    order = Order(len(images), seed)
    order.images = images
    return order
