"""Loading a Stage C 1B file (2 GB, bfloat16, random weights): time and peak memory against safetensors alone.

    python benchmarks/loading.py

Each load runs in a process of its own and takes its turn, once with the file on the disk alone and once with it in the
system's page cache, where reading costs next to nothing and our building of the network shows. Memory is the growth of
the resident set at its peak, and the pages of the mapped file count. Every page is touched before the clock stops.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import arguments, machine, print_table
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
MANIFESTS = HERE.parent / "tests" / "data" / "reference" / "manifests"
SIDES = ("safetensors", "cascade")
MB = 1e6


def write_file(path: Path, part: str) -> int:
    """A file with the names and shapes of a released one, in bfloat16; returns its size in bytes."""
    shapes = json.loads((MANIFESTS / f"{part}.json").read_text(encoding="utf-8"))["tensors"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 20, generator=generator).bfloat16()
    tensors = {}
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        tensors[name] = noise.repeat(-(-size // len(noise)))[:size].reshape(shape).clone()
    save_file(tensors, path)
    return path.stat().st_size


def forget(path: Path) -> None:
    """Takes a file out of the page cache (Linux; elsewhere it stays)."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_once(side: str, path: Path) -> tuple[float, float]:
    """Seconds, and bytes at the peak."""
    command = [sys.executable, str(HERE / "load_once.py"), side, str(path)]
    seconds, memory = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(seconds), float(memory)


def main() -> None:
    options = arguments(__doc__ or "", repeats=5)
    part = "previewer" if options.small else "stage_c_1b"
    disk, cache, memory = ({side: [] for side in SIDES} for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        size = write_file(path, part)
        for turn in range(options.repeats):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                forget(path)
                disk[side].append(load_once(side, path)[0])
                seconds, peak = load_once(side, path)
                cache[side].append(seconds)
                memory[side].append(peak)
    print(f"{machine()}; file of {size / MB:.0f} MB ({part}, bfloat16), {options.repeats} loads of each side\n")
    rows = []
    for name, values in (("time, from the disk", disk), ("time, from the page cache", cache)):
        theirs, ours = (statistics.median(values[side]) for side in SIDES)
        rows.append([name, f"{theirs:.2f} s", f"{ours:.2f} s", f"{ours / theirs:.2f}", ""])
    theirs, ours = (max(memory[side]) for side in SIDES)
    ratios = [f"{ours / theirs:.2f}", f"{ours / size:.2f}"]
    rows.append(["peak memory", f"{theirs / MB:.0f} MB", f"{ours / MB:.0f} MB", *ratios])
    print_table(["", "safetensors alone", "load_model", "ratio", "of the file"], rows)


if __name__ == "__main__":
    main()
