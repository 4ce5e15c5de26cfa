"""Peak memory of `generate` at 1024 x 1024 with networks of the released sizes: bfloat16, random weights.

    python benchmarks/memory.py            # Stage C 1B and Stage B 700M: 6 GB of disk, 4 GB of memory
    python benchmarks/memory.py --large    # Stage C 3.6B and Stage B 1.5B: 13 GB of disk, 9 GB of memory
    python benchmarks/memory.py --small    # a trial of the script, at 256 x 256

One image with one step of each stage: every step needs the same memory. Memory is the growth of the resident set
(Linux) since before the first file was read, and pages of mapped files count. It is shown for each network: the peak
from its reading to that of the next.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import arguments, machine, print_table, with_random_weights
from load_once import resident

from cascade.checkpoints import load_model, save_model
from cascade.checkpoints.network_kinds import KINDS, empty_network, variant
from cascade.pipelines import Parts, Settings, generate

RELEASED = {"text_encoder": "CLIP bigG/14", "stage_c": "1B", "stage_b": "700M", "stage_a": ""}
LARGE = RELEASED | {"stage_c": "3.6B", "stage_b": "1.5B"}
MARGIN = 1.15
"""The aim: at most this many times the largest file."""


def forget_peak() -> None:
    """The peak begins again at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def write(path: Path, kind: str, size: str) -> None:
    """A network's file. In a process of its own: memory that this one had freed would not count as growth."""
    save_model(with_random_weights(empty_network(kind, KINDS[kind].released[size]).bfloat16()), path)


def measured(paths: dict[str, Path], side: int) -> dict[str, int]:
    """Kind -> bytes at the peak while it was the last that was read."""
    start, peaks, last = resident("VmRSS"), {}, [""]

    def close() -> None:
        if last[0]:
            peaks[last[0]] = resident("VmHWM") - start

    def source(kind: str) -> Callable[[], Any]:
        def load() -> Any:
            close()
            forget_peak()
            last[0] = kind
            return load_model(paths[kind], part=kind)

        return load

    settings = Settings(width=side, height=side)
    once = {name: replace(getattr(settings, name), steps=1) for name in ("stage_c", "stage_b")}
    parts = Parts({kind: source(kind) for kind in paths})
    generate(parts, ["a red circle"], seeds=[0], settings=replace(settings, **once))
    close()
    return peaks


def main() -> None:
    options = arguments(__doc__ or "", repeats=1, large="the large networks")
    if not sys.platform.startswith("linux"):
        raise SystemExit("This reads /proc, which Linux has.")
    sizes, side = LARGE if options.large else RELEASED, 256 if options.small else 1024
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.safetensors" for kind in sizes}
        for kind, size in sizes.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(write, (paths[kind], kind, size))
        files = {kind: path.stat().st_size for kind, path in paths.items()}
        peaks = measured(paths, side)
    rows = [
        [variant(kind, KINDS[kind].released[size]), f"{files[kind] / 1e6:.0f} MB", f"{peaks[kind] / 1e6:.0f} MB"]
        for kind, size in sizes.items()
    ]
    largest, peak = max(files.values()), max(peaks.values())
    print(f"{machine()}; {side} x {side}, bfloat16\n")
    print_table(["network", "file", "peak while it runs"], rows)
    print(f"\npeak {peak / 1e6:.0f} MB: {peak / largest:.2f} of the largest file (aim: {MARGIN})")


if __name__ == "__main__":
    main()
