"""One load in a process of its own, for loading.py: prints seconds and the growth of the resident set in bytes."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file

from cascade.checkpoints import load_model


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) in bytes; pages of a mapped file count."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = re.search(field + r":\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) * 1024


def load(side: str, path: str) -> list[torch.Tensor]:
    if side == "safetensors":
        return list(load_file(path).values())
    net = load_model(path)
    return [*net.parameters(), *net.buffers()]


if __name__ == "__main__":
    before, start = resident("VmRSS"), time.perf_counter()
    for tensor in load(sys.argv[1], sys.argv[2]):
        # One byte of every page: a mapped file costs nothing until it is read.
        tensor.detach().reshape(-1).view(torch.uint8)[::4096].sum()
    print(time.perf_counter() - start, resident("VmHWM") - before)
