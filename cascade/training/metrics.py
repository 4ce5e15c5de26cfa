"""Metrics as JSON lines, and a plot of the loss."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..files import open_regular, write_atomically

METRICS_FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of folder/metrics.jsonl (one that a crash cut off, or that is damaged, is left out)."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    with open_regular(path) as file:
        text = file.read().decode("utf-8", errors="replace")
    lines = map(_parsed, text.splitlines())
    return [line for line in lines if isinstance(line.get("step"), int) and 0 < line["step"] < 2**63]


def _parsed(line: str) -> dict[str, Any]:
    """Empty for a line that is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Add one line; numbers that are not finite are written as null, which every JSON reader takes."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(clean) + "\n")


def truncate_metrics(folder: Path, step: int) -> None:
    """Remove what was logged after `step`: a run that continues from there writes those lines again."""
    path = folder / METRICS_FILE
    if path.exists() or path.is_symlink():  # a link that leads nowhere would be followed by the first line
        kept = [json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= step]
        write_atomically(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))


def plot_loss(folder: Path, *, size: tuple[int, int] = (900, 420)) -> Image.Image | None:
    """The loss over the steps, logarithmic upwards; thin as logged, thick smoothed. None with fewer than two lines."""
    lines = [m for m in read_metrics(folder) if isinstance(m.get("loss"), float) and 0 < m["loss"] < math.inf]
    if len(lines) < 2:
        return None
    steps, losses = [m["step"] for m in lines], [math.log10(m["loss"]) for m in lines]
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    left, top, right, bottom = 70, 20, size[0] - 20, size[1] - 40

    def place(step: int, value: float) -> tuple[float, float]:
        return left + (right - left) * step / steps[-1], bottom - (bottom - top) * (value - low) / span

    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for i in range(5):
        value = low + span * i / 4
        y = place(0, value)[1]
        draw.line([(left, y), (right, y)], fill="#dddddd")
        draw.text((8, y - 6), f"{10**value:.4g}", fill="black")
        step = round(steps[-1] * i / 4)
        draw.text((place(step, low)[0] - 12, bottom + 10), str(step), fill="black")
    draw.line([place(s, v) for s, v in zip(steps, losses, strict=True)], fill="#9db8d9")
    draw.line([place(s, v) for s, v in zip(steps, smoothed(losses), strict=True)], fill="#1f4e8c", width=2)
    return image


def smoothed(values: Sequence[float], width: int = 10) -> list[float]:
    """The mean of up to `width` values on either side of each, as many before it as after it.

    A mean of earlier values alone would lag behind a loss that falls.
    """
    sums = np.cumsum([0.0, *values])
    here = np.arange(len(values))
    reach = np.minimum(np.minimum(here, here[::-1]), width)
    return list((sums[here + reach + 1] - sums[here - reach]) / (2 * reach + 1))
