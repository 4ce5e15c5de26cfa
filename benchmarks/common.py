"""What the benchmarks share: small networks, random weights, interleaved timing, and a table."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from cascade.models import Level, StageAConfig, StageBConfig, StageCConfig

SMALL_A = StageAConfig(width=32, bottleneck_blocks=1, codebook_size=16)
SMALL_C = StageCConfig(condition_channels=64, levels=(Level(64, 2, 1), Level(64, 2, 2)))
SMALL_B = StageBConfig(
    condition_channels=64, levels=(Level(32, 0, 1, "CT", up_repeats=2), Level(64, 2, 2, up_repeats=2))
)


def arguments(description: str, repeats: int, **flags: str) -> argparse.Namespace:
    """What all scripts take; `flags` are more options, each with its help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small networks: a trial of the script, not a measurement")
    parser.add_argument("--repeats", type=int, default=repeats, help="runs of each side; the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    for name, about in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=about)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {cpu}"


def with_random_weights(net: nn.Module) -> nn.Module:
    """`net`, built on the meta device, with weights that keep a signal's size and let every layer be heard."""
    net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.fill_(1.0)
            elif tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.dim() > 1 and tensor[..., 0].numel() > 1 else 100
                tensor.normal_(std=fan_in**-0.5, generator=generator)
    return net.eval().requires_grad_(False)


def interleaved(
    sides: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each side. Sides take turns, so that a slow moment of the machine falls on all of them."""
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in order:
            start = clock()
            sides[name]()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max|ours - theirs| / max|theirs|."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, ready for a page of docs/."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in lines)


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print(table(head, rows), flush=True)


def write_into(page: Path, name: str, text: str) -> None:
    """Put a text into a page, in place of what stands between <!-- name --> and <!-- /name -->."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise SystemExit(f"{page}: there is no place for {name}")
    page.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")
