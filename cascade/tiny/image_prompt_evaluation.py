"""How well the tiny cascade follows two images by their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from ..pipelines import ImagePrompt, Parts, Settings, generate
from . import grammar
from .analysis import describe
from .evaluation import BATCH, SETTINGS, Evaluation, Judged, OnProgress, Sample, drawn_scenes, to_rows
from .grammar import Scene

AIMS = {
    "two images, weights 1 and 0: color and shape of the first": 0.85,
    "two images, weights 0 and 1: color and shape of the second": 0.85,
    "two images, weights 0.5 and 0.5: color and shape of one of both": 0.85,
}
"""The questions in the order of the table, and the score to reach."""

WEIGHTS = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
"""Of each question."""
SEEDS = 12000
"""The first of the images' seeds: no training image has one of these."""


def image_prompt_rows(
    parts: Parts, *, cases: int = 100, settings: Settings = SETTINGS, on_progress: OnProgress | None = None
) -> Evaluation:
    """Generate and judge so many pairs of images with each of the weights and the empty prompt, always the same ones.

    parts: of the tiny cascade. Raises as `pipelines.generate`.
    """
    report = on_progress or (lambda _what, _done, _all: None)
    judged: list[Judged] = []
    samples: list[Sample] = []
    for first in range(0, cases, BATCH):
        numbers = range(first, min(first + BATCH, cases))
        pairs = [_pair(np.random.default_rng((number, 0, 9))) for number in numbers]
        seeds = [SEEDS + number for number in numbers]
        drawn = [drawn_scenes([pair[side] for pair in pairs], seeds, 8 + side) for side in (0, 1)]
        for question, weights in zip(AIMS, WEIGHTS, strict=True):
            made = _made(parts, drawn, weights, seeds, settings)
            judged += _judged(question, pairs, weights, made)
            samples += [Sample(question, image) for image in made]
        report("image prompts", numbers[-1] + 1, cases)
    return Evaluation(to_rows(judged, AIMS), tuple(samples))


def _pair(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Two images of one shape each that differ in all that is judged, and in their background."""
    while True:
        pair = grammar.complete(grammar.sample(rng), rng), grammar.complete(grammar.sample(rng), rng)
        one, other = ({(scene.background, item.color, item.shape) for item in scene.items} for scene in pair)
        if len(pair[0].items) == len(pair[1].items) == 1 and all(a != b for a, b in zip(*one, *other, strict=True)):
            return pair


def _made(
    parts: Parts, drawn: Sequence[Tensor], weights: Sequence[float], seeds: Sequence[int], settings: Settings
) -> Tensor:
    prompt = ImagePrompt(images=drawn, weights=weights)
    return generate(parts, [""] * len(seeds), seeds=seeds, prompt_images=[prompt], settings=settings).images


def _judged(
    question: str, pairs: Sequence[tuple[Scene, Scene]], weights: Sequence[float], made: Tensor
) -> Iterator[Judged]:
    for pair, image in zip(pairs, made, strict=True):
        found = [(item.color, item.shape) for item in describe(image).items[:1]]
        wanted = [scene.items[0] for scene, weight in zip(pair, weights, strict=True) if weight]
        yield Judged(question, float(any(found == [(item.color, item.shape)] for item in wanted)))
