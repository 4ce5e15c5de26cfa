"""Loading a Stage C 1B file (2 GB, bfloat16, random weights): time and peak memory against safetensors alone.

    python benchmarks/loading.py

Each load runs in a process of its own and takes its turn. Memory is the growth of the resident set at its peak, and the
pages of the mapped file count. Every page is touched before the clock stops.
"""

from __future__ import annotations

import json
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


def load_once(side: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, str(HERE / "load_once.py"), side, str(path)]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(memory)


def main() -> None:
    options = arguments(__doc__ or "", repeats=5)
    part = "previewer" if options.small else "stage_c_1b"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        size = write_file(path, part)
        load_once("safetensors", path)  # from here on the file is in the page cache
        loads: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        for _ in range(options.repeats):
            for side in SIDES:
                loads[side].append(load_once(side, path))
    seconds = {side: statistics.median(load[0] for load in loads[side]) for side in SIDES}
    memory = {side: max(load[1] for load in loads[side]) for side in SIDES}
    print(f"{machine()}; file of {size / MB:.0f} MB ({part}, bfloat16), {options.repeats} loads of each side\n")
    head = ["", "safetensors alone", "load_model", "ratio", "of the file"]
    time_row = ["time", *(f"{seconds[side]:.2f} s" for side in SIDES), f"{seconds[SIDES[1]] / seconds[SIDES[0]]:.2f}"]
    peak_row = ["peak memory", *(f"{memory[side] / MB:.0f} MB" for side in SIDES)]
    peak_row += [f"{memory[SIDES[1]] / memory[SIDES[0]]:.2f}", f"{memory[SIDES[1]] / size:.2f}"]
    print_table(head, [[*time_row, ""], peak_row])


if __name__ == "__main__":
    main()
