"""How much of a prompt is in images that are made from the prior's embedding alone, and from that of a drawn image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..models import Prior
from ..pipelines import Parts, PriorPrompt, Settings, generate
from . import grammar
from .analysis import describe
from .evaluation import (
    BATCH,
    SETTINGS,
    Evaluation,
    Judged,
    OnProgress,
    Sample,
    drawn_scenes,
    held_out_scenes,
    is_unseen,
    judge,
    to_rows,
)
from .grammar import Scene

ALL = "all that the prompt says"
PARTS = ("background color", "shape color", "shape", "place", "size", "both of two shapes", ALL)
"""The questions of `judge` that are asked."""
PRIOR, DRAWN = "prior", "embedding of a drawn image"
AIMS = {
    f"{PRIOR}: {ALL}": 0.75,
    **{f"{PRIOR}: {part}": None for part in PARTS[:-1]},
    f"{DRAWN}: {ALL}": None,
    **{f"{DRAWN}: {part}": None for part in PARTS[:-1]},
}
"""The questions in the order of the table, and the score to reach. What the image encoder sees of a drawn image bounds
what a prior can say."""
SEED = 12


def evaluate_prior(
    parts: Parts,
    net: Prior,
    *,
    cases: int = 100,
    settings: Settings = SETTINGS,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Judge so many prompts, always the same ones, without text in Stage C.

    parts: those of the tiny cascade, with the image encoder. Raises as `pipelines.generate`.
    """
    report = on_progress or (lambda _what, _done, _all: None)
    judged: list[Judged] = []
    samples: list[Sample] = []
    scenes = held_out_scenes(cases, SEED)
    for first in range(0, cases, BATCH):
        some = scenes[first : first + BATCH]
        seeds = [1000 * SEED + first + i for i in range(len(some))]
        captions = [grammar.write(scene) for scene in some]
        made = generate(parts, captions, seeds=seeds, prior=PriorPrompt(net=net), settings=settings).images
        whole = [grammar.complete(scene, np.random.default_rng((seed, 0, 5))) for scene, seed in zip(some, seeds)]
        drawn = drawn_scenes(whole, seeds, 4)
        again = generate(parts, [""] * len(some), seeds=seeds, variation_of=drawn, settings=settings).images
        judged += _judged(PRIOR, some, made)
        judged += _judged(DRAWN, some, again)
        samples += [Sample(caption, image) for caption, image in zip(captions, made)]
        report(PRIOR, first + len(some), cases)
    return Evaluation(to_rows(judged, AIMS), tuple(samples))


def _judged(what: str, scenes: Sequence[Scene], images: Tensor) -> list[Judged]:
    return [
        Judged(f"{what}: {each.question}", each.answer, is_unseen(scene))
        for scene, image in zip(scenes, images)
        for each in judge(scene, describe(image))
        if each.question in PARTS
    ]
