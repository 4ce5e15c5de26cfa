"""The released sizes on large images (random weights), whole and in tiles: time and peak memory by size.

    python benchmarks/large_images.py               # Stage A decodes and encodes, one step of Stage B 700M
    python benchmarks/large_images.py --bfloat16    # half the memory, and several times as slow on a CPU without AMX
    python benchmarks/large_images.py --write       # the table into docs/image-inputs.md
    python benchmarks/large_images.py --small       # a trial of the script in seconds

Every run is a process of its own. Memory is the growth of its resident set at the peak: all but the weights. What does
not fit is left out and named. Of decoded images the largest difference between whole and tiled is shown, in 255ths;
Stage B, whose attention sees a tile alone, draws another image in tiles.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import SMALL_B, arguments, machine, table, with_random_weights, write_into
from load_once import resident
from torch import Tensor

from cascade.conditioning import StageBInputs
from cascade.diffusion import Guidance
from cascade.models import STAGE_A, STAGE_B_700M, StageA, StageB
from cascade.pipelines import SamplingSettings, StagePlan, Tiles, decode, encode_stage_a, sample_stage_b

SIDES, TILE = (1024, 2048, 4096), 1024
SMALL_SIDES, SMALL_TILE = (256, 512), 160
PAGE = Path(__file__).resolve().parent.parent / "docs" / "image-inputs.md"
HEAD = ["", "image", "whole: time", "peak", "tiles: time", "peak", "tiles / whole", "difference / 255"]
FLAGS = {"bfloat16": "bfloat16 in place of float32", "write": "write the table into docs/image-inputs.md"}
GB = 1e9

Job = Callable[[], Tensor]


def stage_a(options: argparse.Namespace) -> StageA:
    with torch.device("meta"):
        net = StageA(replace(STAGE_A, width=32, bottleneck_blocks=2) if options.small else STAGE_A)
    with_random_weights(net.to(options.dtype))
    return net


def decoding(side: int, tile: int | None, options: argparse.Namespace) -> Job:
    net, latents = stage_a(options), torch.randn(1, 4, side // 4, side // 4) * 0.3
    return lambda: decode(net, latents, tile)


def encoding(side: int, tile: int | None, options: argparse.Namespace) -> Job:
    net, image = stage_a(options), torch.rand(1, 3, side, side)
    return lambda: encode_stage_a(net, image, tile)


def a_step(side: int, tile: int | None, options: argparse.Namespace) -> Job:
    with torch.device("meta"):
        net = StageB(SMALL_B if options.small else STAGE_B_700M).to(options.dtype)
    with_random_weights(net)
    inputs = StageBInputs(torch.randn(1, 16, side // 32, side // 32), torch.randn(1, 1, net.config.clip))
    settings = SamplingSettings(steps=1, guidance=Guidance(cfg=1.0), shift=1.0)
    size, tiles = (4, side // 4, side // 4), Tiles(tile, tile // 4) if tile else None
    plan = StagePlan(stage="stage_b", size=size, seeds=[0], settings=settings, cond=inputs, uncond=inputs, tiles=tiles)
    return lambda: sample_stage_b(net, plan)


JOBS = {"Stage A decodes": decoding, "Stage A encodes": encoding, "a step of Stage B 700M": a_step}


def once(job: str, side: str, tile: str, path: str) -> None:
    """One run; prints seconds and bytes, and leaves the result in a file."""
    options = given()
    torch.manual_seed(1)
    with torch.inference_mode():
        run = JOBS[job](int(side), int(tile) or None, options)
        before, start = resident("VmRSS"), time.perf_counter()
        result = run()
    print(time.perf_counter() - start, resident("VmHWM") - before)
    torch.save(result, path)


def measured(job: str, side: int, tile: int | None, options: argparse.Namespace, path: Path) -> tuple[float, float]:
    """Seconds and bytes of a run in a process of its own."""
    flags = [f"--{name}" for name in ("small", "bfloat16") if getattr(options, name)]
    words = [job, str(side), str(tile or 0), str(path), *flags, "--threads", str(options.threads)]
    command = [sys.executable, __file__, "--once", *words]
    seconds, memory = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(seconds), float(memory)


def available() -> float:
    """Bytes that are free, where the system tells."""
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return float(found[1]) * 1024 if found else float("inf")


def rows(job: str, options: argparse.Namespace, folder: Path) -> list[list[str]]:
    sides, tile = (SMALL_SIDES, SMALL_TILE) if options.small else (SIDES, TILE)
    whole_path, tiled_path = folder / "whole.pt", folder / "tiled.pt"
    found, peak = [], 0.0
    for before, side in zip([sides[0], *sides], sides):
        seconds, tiled_peak = measured(job, side, tile, options, tiled_path)
        tiled = [f"{seconds:.1f} s", f"{tiled_peak / GB:.2f} GB"]
        # The peak grows with the pixels, and attention's time alone with their square.
        peak *= (side / before) ** 2
        if peak > available():
            cells = ["does not fit", f"(about {peak / GB:.0f} GB)", *tiled, "", ""]
        else:
            whole, peak = measured(job, side, None, options, whole_path)
            apart = ""
            if JOBS[job] is decoding:
                apart = f"{float((torch.load(whole_path) - torch.load(tiled_path)).abs().max()) * 255:.4f}"
            cells = [f"{whole:.1f} s", f"{peak / GB:.2f} GB", *tiled, f"{seconds / whole:.2f}", apart]
        found.append([job, f"{side} x {side}", *cells])
        print(" | ".join(found[-1]), file=sys.stderr, flush=True)
    return found


def given() -> argparse.Namespace:
    options = arguments(__doc__ or "", repeats=1, **FLAGS)
    options.dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    return options


def main() -> None:
    if "--once" in sys.argv:
        at = sys.argv.index("--once")
        words = sys.argv[at + 1 : at + 5]
        del sys.argv[at : at + 5]
        once(*words)
        return
    options = given()
    with tempfile.TemporaryDirectory() as folder:
        found = [row for job in JOBS for row in rows(job, options, Path(folder))]
    dtype = "bfloat16" if options.bfloat16 else "float32"
    text = f"{table(HEAD, found)}\n\n{machine()}; {dtype}, tiles of {TILE}, one run of each."
    if options.write:
        write_into(PAGE, "large images", text)
    print(text)


if __name__ == "__main__":
    main()
