"""Decoding with the released Stage A (random weights), whole and in tiles: time and peak memory by size.

    python benchmarks/decoding.py              # bfloat16; 4096 whole wants about 18 GB
    python benchmarks/decoding.py --float32    # twice the memory, and several times as fast on a CPU without AMX
    python benchmarks/decoding.py --small      # a trial of the script in seconds

What does not fit is left out and named. Each decode runs in a process of its own. Memory is the growth of the resident
set at its peak, the picture itself (the column beside it) among it. Where both fit, the largest difference between
whole and tiled is shown, in 255ths.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import arguments, machine, print_table, with_random_weights
from load_once import resident

from cascade.models import STAGE_A, StageA
from cascade.pipelines import decode

SIDES = (1024, 2048, 4096)
TILE = 1024
SMALL_SIDES, SMALL_TILE = (256, 512), 160
BYTES_A_PIXEL = 1100
"""That a whole decode takes at its peak in bfloat16, measured at 1024 and 2048; in float32 twice as many."""
FLOAT32 = "float32 in place of bfloat16"
HEAD = ["picture", "its own size", "whole: time", "peak", "tiles: time", "peak", "tiles / whole", "difference / 255"]
GB = 1e9


def stage_a(options: argparse.Namespace) -> StageA:
    """The same weights in every process."""
    with torch.device("meta"):
        net = StageA(replace(STAGE_A, width=32, bottleneck_blocks=2) if options.small else STAGE_A)
    with_random_weights(net)
    return net if options.float32 else net.bfloat16()


def once(side: int, tile: int | None, options: argparse.Namespace, path: str) -> None:
    """One decode; prints seconds and bytes, and leaves the picture in a file."""
    net = stage_a(options)
    latents = torch.randn(1, 4, side // 4, side // 4, generator=torch.Generator().manual_seed(1)) * 0.3
    before, start = resident("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        image = decode(net, latents, tile)
    print(time.perf_counter() - start, resident("VmHWM") - before)
    torch.save(image, path)


def measured(side: int, tile: int | None, options: argparse.Namespace, path: Path) -> tuple[float, float]:
    """Seconds and bytes of a decode in a process of its own."""
    flags = [f"--{name}" for name in ("small", "float32") if getattr(options, name)]
    words = [str(side), str(tile or 0), str(path), *flags]
    command = [sys.executable, __file__, "--once", *words, "--threads", str(options.threads)]
    seconds, memory = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(seconds), float(memory)


def available() -> float:
    """Bytes that are free, where the system tells."""
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return float(found[1]) * 1024 if found else float("inf")


def row(side: int, tile: int, options: argparse.Namespace, folder: Path) -> list[str]:
    paths = {name: folder / f"{name}.pt" for name in ("whole", "tiled")}
    seconds, peak = measured(side, tile, options, paths["tiled"])
    cells = [f"{seconds:.1f} s", f"{peak / GB:.2f} GB"]
    head = [f"{side} x {side}", f"{side * side * 12 / GB:.2f} GB"]
    needed = side * side * BYTES_A_PIXEL * (2 if options.float32 else 1)
    if not options.small and needed > available():
        return [*head, "does not fit", f"(about {needed / GB:.0f} GB)", *cells, "", ""]
    whole, whole_peak = measured(side, None, options, paths["whole"])
    images = [torch.load(path) for path in paths.values()]
    apart = float((images[0] - images[1]).abs().max()) * 255
    return [
        *head,
        f"{whole:.1f} s",
        f"{whole_peak / GB:.2f} GB",
        *cells,
        f"{seconds / whole:.2f}",
        f"{apart:.4f}",
    ]


def main() -> None:
    if "--once" in sys.argv:
        at = sys.argv.index("--once")
        side, tile, path = sys.argv[at + 1 : at + 4]
        del sys.argv[at : at + 4]
        once(int(side), int(tile) or None, arguments("", repeats=1, float32=FLOAT32), path)
        return
    options = arguments(__doc__ or "", repeats=1, float32=FLOAT32)
    sides, tile = (SMALL_SIDES, SMALL_TILE) if options.small else (SIDES, TILE)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(side, tile, options, Path(folder)) for side in sides]
    dtype = "float32" if options.float32 else "bfloat16"
    print(f"{machine()}; {dtype}, tiles of {tile}, one decode of each\n")
    print_table(HEAD, rows)


if __name__ == "__main__":
    main()
