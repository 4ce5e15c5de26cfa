"""How the suite for a graphics card measures a row, and what it says of one that it cannot measure."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

HEAD = ["", "side", "time", "peak memory", "TFLOP/s", "of the matrix product's rate"]


class NotHere(Exception):
    """A side that this machine does not have."""


Build = Callable[[], Callable[[], object]]
"""Makes the networks, and returns what is timed."""


@dataclass
class Row:
    """A line of the table. `unit`: how many of what the title says are in one call; `flop` of one."""

    title: str
    side: str
    build: Build
    unit: int = 1
    flop: float = 0.0


@dataclass
class Card:
    """The device, and how to measure on it."""

    device: torch.device
    repeats: int
    until: float
    product: int
    """Side of the matrices whose product sets the rate to compare with."""
    rates: dict[torch.dtype, float] = field(default_factory=dict)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        for _ in range(self.repeats):
            run()
        self.wait()
        return (time.perf_counter() - start) / self.repeats

    def peak(self) -> str:
        if self.device.type != "cuda":
            return ""
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"

    def clean(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def rate(self, dtype: torch.dtype) -> float:
        """FLOP a second of a matrix product."""
        side = self.product
        if dtype not in self.rates:
            a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            a @ b
            self.rates[dtype] = 2 * side**3 / self.seconds(lambda: a @ b)
        return self.rates[dtype]


def line(card: Card, row: Row, dtype: torch.dtype) -> list[str]:
    """A row, measured, or why it was not."""
    if time.monotonic() > card.until:
        return [row.title, row.side, "not reached in time", "", "", ""]
    card.clean()
    try:
        run = row.build()
        run()
        seconds = card.seconds(run) / row.unit
        cells = [f"{1000 * seconds:.1f} ms", card.peak()]
        if row.flop:
            rate = row.flop / seconds
            return [row.title, row.side, *cells, f"{rate / 1e12:.2f}", f"{rate / card.rate(dtype):.0%}"]
        return [row.title, row.side, *cells, "", ""]
    except (torch.OutOfMemoryError, MemoryError):
        return [row.title, row.side, "out of memory", "", "", ""]
    except (NotHere, ImportError) as error:
        return [row.title, row.side, f"not here: {_first_line(error)}", "", "", ""]
    except Exception as error:  # noqa: BLE001  one row must not end the others
        return [row.title, row.side, f"failed: {type(error).__name__}: {_first_line(error)}", "", "", ""]
    finally:
        run = None
        card.clean()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].replace("|", "/")[:100]
