"""How much a LoRA changes each block, as numbers and as a chart."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw

from ..errors import one_line
from .changes import OFT, Change, Full, LoHa, LoKr, Rows, product
from .lora import Lora

BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(\d+)\.|text_model\.encoder\.(layers)\.(\d+)\.")
COLORS = {"down": "#1f4e8c", "up": "#8c3b1f", "text": "#2f7d4f", "other": "#777777"}


def norm_of(change: Change) -> float:
    """Frobenius norm of what is added to a weight at strength 1, without DoRA's lengths. Of OFT, whose change depends
    on the weight, that of a weight of orthogonal rows."""
    if isinstance(change, Full):
        return float(change.value.float().norm())
    if isinstance(change, Rows):
        return float(change.values.float().norm())
    if isinstance(change, LoHa):
        return float(change.plain().float().norm())
    if isinstance(change, LoKr):
        return abs(change.scale) * math.prod(float(product(factors).norm()) for factors in (change.w1, change.w2))
    if isinstance(change, OFT):
        return float((change.rotations(change.blocks.device) - torch.eye(change.blocks.shape[1])).norm())
    up, down = change.up.float().flatten(1), change.down.float().flatten(1)
    if change.rank**2 > up.shape[0] * down.shape[1]:
        return abs(change.scale) * float((up @ down).norm())
    # |up @ down|^2 is the sum of the elementwise product of two [rank, rank] matrices: the product is not formed.
    return abs(change.scale) * math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


def norms_by_block(lora: Lora) -> dict[str, float]:
    """Block -> norm of all its changes, in the network's order: "down 0.3", "up 1.2", "text 5", others by name.

    "down 0.3" is the block 3 of level 0, where residual, timestep and attention blocks count together.
    """
    norms: dict[str, float] = {}
    for changes in lora.changes.values():
        for name, change in changes.items():
            block = _block(name)
            norms[block] = math.hypot(norms.get(block, 0.0), norm_of(change))
    return {block: norms[block] for block in sorted(norms, key=_order)}


def _block(name: str) -> str:
    found = BLOCK.match(name)
    if found is None:
        return name.split(".")[0 if not name.startswith("text_model") else -2]
    side, level, place, text, layer = found.groups()
    return f"text {layer}" if text else f"{side} {level}.{place}"


def _order(block: str) -> tuple[int, list[int]]:
    side, _, rest = block.partition(" ")
    place = ["down", "up", "text"].index(side) if side in ("down", "up", "text") else 3
    numbers = [int(number) for number in re.findall(r"\d+", rest)]
    return place, numbers


def chart(norms: Mapping[str, float], *, size: tuple[int, int] = (1024, 420)) -> Image.Image:
    """A bar chart of the norms. Colors: blocks on the way down, on the way up, of the text encoder, and other layers.

    Args:
        norms: of `norms_by_block`.
        size: width and height in pixels.
    """
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = 64, 30, size[0] - 16, size[1] - 70
    if not norms:
        draw.text((left, top), "no changes of weights", fill="black")
        return image
    high = max(norms.values()) or 1.0
    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        draw.line([(left, y), (right, y)], fill="#dddddd")
        draw.text((6, y - 6), f"{high * part / 4:.3g}", fill="black")
    width = (right - left) / len(norms)
    for place, (block, norm) in enumerate(norms.items()):
        x, y = left + place * width, bottom - (bottom - top) * norm / high
        color = COLORS.get(block.split(" ")[0], COLORS["other"])
        draw.rectangle([x + 0.1 * width, min(y, bottom - 1), x + 0.9 * width, bottom], fill=color)
        _write_upright(image, block, (round(x + width / 2), bottom + 4), every=max(1, round(14 / width)), place=place)
    draw.text((left, 8), "norm of the change by block", fill="black")
    return image


def _write_upright(image: Image.Image, text: str, at: tuple[int, int], *, every: int, place: int) -> None:
    """A label below a bar, turned by 90 degrees; only every `every`-th bar has one."""
    if place % every:
        return
    label = Image.new("RGB", (66, 12), "white")
    ImageDraw.Draw(label).text((0, 0), text[:11], fill="black")
    image.paste(label.rotate(90, expand=True), (at[0] - 6, at[1]))


def summary(lora: Lora) -> list[str]:
    """Lines of text: what it was made for, what it changes, its tokens, its training settings."""
    ranks = ", ".join(map(str, lora.ranks)) or "none"
    alphas = ", ".join(f"{alpha:g}" for alpha in lora.alphas) or "none"
    lines = [f"format: {lora.format}", f"made for: {_made_for(lora)}", f"rank: {ranks}", f"alpha: {alphas}"]
    if lora.kinds:
        lines.insert(2, f"kind: {', '.join(lora.kinds)}")
    lines += [f"changes of {kind}: {len(changes)}" for kind, changes in lora.changes.items()]
    for token in lora.tokens:
        added = f", added to {token.initializer!r}" if token.initializer else ""
        lines.append(f"token: {token.text or '(without a name)'}, {len(token.vectors)} vectors{added}")
    lines += (f"{name}: {value}" for name, value in lora.training.items() if value not in (None, "", [], {}))
    return [one_line(line) for line in lines]


def _made_for(lora: Lora) -> str:
    if lora.base is None:
        if lora.changes.get("stage_b"):
            return "Stage B"
        return "any Stage C: it changes the text encoder only" if lora.changes else "any Stage C: it only has tokens"
    return f"Stage C, {lora.base}" + (f" ({lora.width} wide)" if lora.base == "custom" and lora.width else "")
