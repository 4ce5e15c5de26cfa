"""What a training takes to start on many images: `python benchmarks/training_data.py 100 10000 1000000`.

For each number of images: a folder of them is looked at, a list of them is opened, a cache of them is opened and read
from. The images are empty files, and what is cached of each is small: what grows with their number is measured.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cascade.training.cache import cached
from cascade.training.data import ImageSettings, open_images
from cascade.training.order import Order


class Numbers:
    """Images of one pixel."""

    size = 1

    def __init__(self, count: int) -> None:
        self.count, self.name = count, f"numbers-{count}"

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, count: int) -> tuple[np.ndarray, list[str]]:
        return np.zeros((count, 1, 1, 3), np.uint8), [f"caption {start + number}" for number in range(count)]


def memory() -> float:
    """The most that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def look(what: str, folder: Path, count: int) -> None:
    before, start = memory(), time.perf_counter()
    if what == "cache":
        data = cached(folder / "cache", "x", Numbers(count), lambda pixels: {"images": pixels})
        order = Order(len(data), 0)
        data.take("images", order.rows(0, 8))
    else:
        place = folder / ("images" if what == "folder" else "list.jsonl")
        source = open_images(ImageSettings(path=str(place)))
        if what.endswith("list"):
            source.parts()  # type: ignore[union-attr]
    seconds = time.perf_counter() - start
    print(f"{what:>8} of {count:>9,}: {seconds:6.2f} s, {memory() - before:6.1f} MB", flush=True)


def make(folder: Path, count: int) -> None:
    (folder / "images").mkdir()
    with (folder / "list.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            name = f"{number // 1000:05}/{number:08}.png"
            if number % 1000 == 0:
                (folder / "images" / name).parent.mkdir()
            (folder / "images" / name).touch()
            file.write(json.dumps({"file_name": name, "caption": f"caption {number}"}) + "\n")
    cached(folder / "cache", "x", Numbers(count), lambda pixels: {"images": pixels})


if __name__ == "__main__":
    if sys.argv[1] in ("folder", "list", "cache"):
        look(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        for number in map(int, sys.argv[1:]):
            with tempfile.TemporaryDirectory() as place:
                make(Path(place), number)
                for each in ("folder", "list", "cache"):
                    subprocess.run([sys.executable, __file__, each, place, str(number)], check=True)
