"""How well the tiny cascade learns shapes that it was not trained on: from drawings to a LoRA to a score.

As a user has it: a folder of plain files, the plain command's settings, and images of the token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..adapters import Applied, Lora, read_lora
from ..files import write_atomically
from ..pipelines import Parts, generate
from ..training import ProgressBars
from ..training.plain import PlainLora, train_plain
from . import drawing, flat, grammar
from .analysis import resemblance
from .evaluation import (
    BATCH,
    OTHERS,
    OTHERS_BEFORE,
    SETTINGS,
    UNTOUCHED,
    Evaluation,
    Judged,
    OnProgress,
    Sample,
    judge_others,
    to_rows,
)

COUNT = 20
"""Drawings of each shape."""
CLASS_IMAGES = 200
ALIKE = 0.75
"""From this overlap with the drawn shape on, at the best angle, an image shows it."""
SIDE, BOLD = 256, 0.06


def _crescent(_: np.random.Generator) -> flat.Parts:
    return [(flat.arc(1.0, 1.0), True), (flat.arc(0.8, 0.8) + [0.5, 0.0], False)]


def _ring(_: np.random.Generator) -> flat.Parts:
    return [(flat.arc(1.0, 1.0), True), (flat.arc(0.55, 0.55), False)]


def _arrow(_: np.random.Generator) -> flat.Parts:
    upper = np.array([[1.0, 0.0], [0.1, -0.75], [0.1, -0.28], [-1.0, -0.28]])
    return [(np.concatenate([upper, upper[:0:-1] * [1, -1]]), True)]


def _letter(_: np.random.Generator) -> str:
    return "R"


SHAPES: Mapping[str, Callable[[np.random.Generator], flat.Parts | str]] = {
    "crescent": _crescent,
    "arrow": _arrow,
    "ring": _ring,
    "letter": _letter,
}
COLOR, BACKGROUND = "red", "white"
"""Of the images that are asked for."""
SHOWN = "a new shape from 20 drawings"
AIMS = {**{f"{SHOWN}: {shape}": 0.85 for shape in SHAPES}, UNTOUCHED: None, OTHERS: None, OTHERS_BEFORE: None}
"""The questions in the order of the table, and the score to reach; 0.75 for the worst of the shapes."""


def draw(shape: str, number: int, *, size: int = SIDE) -> tuple[np.ndarray, str]:
    """Drawing `number` of a shape, uint8 [size, size, 3], and the words for it: every color in turn, anywhere."""
    rng = np.random.default_rng((number, list(SHAPES).index(shape), 8))
    color = grammar.COLORS[number % len(grammar.COLORS)]
    background = str(rng.choice([other for other in grammar.COLORS if other != color]))
    image = np.tile(np.array(drawing.PALETTE[background], np.float32), (size, size, 1))
    radius = rng.uniform(0.2, 0.3)
    x, y = rng.uniform(radius + 0.03, 0.97 - radius, 2)
    seen = flat.cover(SHAPES[shape](rng), x, y, radius, size, angle=rng.uniform(-1, 1) * drawing.TILT, bold=BOLD)
    flat.paint(image, seen, np.array(drawing.PALETTE[color], np.float32))
    return flat.to_bytes(image), f"{'an' if color[0] in 'aeiou' else 'a'} {color} {shape} on a {background} background"


def drawn(shape: str) -> np.ndarray:
    """The shape alone, upright, float32 [256, 256] in [0, 1]."""
    return flat.cover(SHAPES[shape](np.random.default_rng(0)), 0.5, 0.5, 0.3, SIDE, bold=BOLD)


def write_drawings(shape: str, folder: Path) -> None:
    """COUNT drawings as files, each named in words: `a red crescent on a white background 3.png`."""
    for number in range(COUNT):
        image, words = draw(shape, number)
        write_atomically(
            folder / f"{words} {number}.png", lambda path, image=image: Image.fromarray(image).save(path, "PNG")
        )


def class_prompts(count: int) -> list[str]:
    """Captions that the tiny cascade knows, always the same ones."""
    return [grammar.write(grammar.sample(np.random.default_rng((1, number)))) for number in range(count)]


def learn(
    shape: str,
    parts: Parts,
    folder: Path,
    *,
    steps: int | None = None,
    class_images: int = CLASS_IMAGES,
    progress: ProgressBars | None = None,
) -> Lora | None:
    """The LoRA of a shape, trained in `folder` as the plain command does; None when it was stopped."""
    write_drawings(shape, folder / "drawings")
    wanted = PlainLora(
        images=folder / "drawings",
        folder=folder / "run",
        name=shape,
        token=f"[{shape}]",
        steps=steps,
        class_prompts=lambda _: class_prompts(class_images),
        at_once=10,
    )
    outcome, _ = train_plain(wanted, parts, progress=progress)
    return read_lora(folder / "run" / f"{shape}.safetensors") if outcome.complete else None


def judge_shape(shape: str, lora: Lora, parts: Parts, seeds: Sequence[int]) -> tuple[list[Judged], list[Sample]]:
    """Images of the LoRA's token, one for each seed, and whether the shape is in them."""
    taught, target = replace(parts, loras=(Applied(lora, 1.0, 1.0),)), drawn(shape)
    caption = f"a {COLOR} [{shape}] on a {BACKGROUND} background"
    judged, samples = [], []
    for first in range(0, len(seeds), BATCH):
        some = seeds[first : first + BATCH]
        for image in generate(taught, [caption] * len(some), seeds=some, settings=SETTINGS).images:
            judged.append(Judged(f"{SHOWN}: {shape}", float(resemblance(image, target) >= ALIKE)))
            samples.append(Sample(caption, image))
    return judged, samples


def evaluate_new_shapes(
    parts: Parts, folder: Path, *, seeds: int = 50, prompts: int = 50, on_progress: OnProgress | None = None
) -> Evaluation:
    """Teach each shape in a subfolder, which continues where it was stopped, and judge its images.

    parts: as of `evaluate`, files. Raises as `train_plain` and `pipelines.generate`.
    """
    report = on_progress or (lambda _what, _done, _all: None)
    judged: list[Judged] = []
    samples: list[Sample] = []
    for shape in SHAPES:
        lora = learn(shape, parts, folder / shape, progress=_reporting(report, shape))
        if lora is None:
            raise KeyboardInterrupt
        answers, images = judge_shape(shape, lora, parts, range(seeds))
        taught = replace(parts, loras=(Applied(lora, 1.0, 1.0),))
        others, _ = judge_others(parts, taught, prompts, report)
        judged += [*answers, *others]
        samples += images
    return Evaluation(to_rows(judged, AIMS), tuple(samples))


def _reporting(report: OnProgress, shape: str) -> ProgressBars:
    def bars(title: str, unit: str) -> Callable[..., None]:
        def update(done: int, total: int, metrics: object = None) -> None:
            if done % 100 == 0:
                report(f"{shape}: {title}", done, total)

        return update

    return bars
