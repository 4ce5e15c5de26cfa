"""How well images of the tiny cascade follow images of reference, and share a style."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..editing import ControlSteps
from ..pipelines import Parts, Settings, StyleReference, generate
from . import grammar
from .analysis import describe
from .editing import Case
from .evaluation import SETTINGS, Evaluation, Judged, OnProgress, Sample, drawn_scenes, to_rows
from .grammar import Item, Scene

FIRST = 20_000
"""The number of the first case: edits have those below."""
STREAM = 8
BATCH = 4

Measure = Callable[[Case], Iterator[Judged]]


@dataclass(frozen=True)
class Kind:
    """One kind of case. aims: its questions in the order of the table, and the score to reach."""

    measure: Measure
    aims: Mapping[str, float | None]


COLORS, SHAPE_AND_PLACE = "colors of the reference", "shape, place and size of the prompt"
COLORS_OF_PROMPT, SHAPE = "colors of the prompt", "shape of the reference"
ALIGNED, SEPARATE = "batch of four, shared style: one color, one background", "the same without a shared style"


def _styled(name: str, reference: Callable[[Tensor], StyleReference | None], case: Case) -> Iterator[Judged]:
    """A drawing's look, with a prompt that names everything but colors."""
    rng = case.rng
    drawn = _one(rng)
    shape = grammar.choice(rng, [shape for shape in grammar.SHAPES if shape != drawn.items[0].shape])
    wanted = Item(None, shape, grammar.choice(rng, grammar.SIZES), grammar.choice(rng, grammar.PLACES))
    image, prompt = drawn_scenes([drawn], case.seeds, STREAM), grammar.write(Scene((wanted,)))
    made = generate(case.parts, [prompt], seeds=case.seeds, style=reference(image), settings=case.settings).images[0]
    case.show(f"{grammar.write(drawn)} | {prompt}", image[0], made)
    seen = describe(made)
    found = seen.items[0] if len(seen.items) == 1 else None
    colors = found is not None and (found.color, seen.background) == (drawn.items[0].color, drawn.background)
    placed = found is not None and (found.shape, found.size, found.place) == (shape, wanted.size, wanted.place)
    yield Judged(f"{name}: {COLORS}", float(colors))
    yield Judged(f"{name}: {SHAPE_AND_PLACE}", float(placed))


def _with_content(name: str, reference: Callable[[Tensor], StyleReference | None], case: Case) -> Iterator[Judged]:
    """What a drawing shows, with a prompt that names colors alone: others than the drawing's."""
    rng = case.rng
    drawn = _one(rng)
    while True:
        item, background = (
            Item(grammar.choice(rng, grammar.COLORS), drawn.items[0].shape),
            grammar.choice(rng, grammar.COLORS),
        )
        others = {item.color, background}.isdisjoint({drawn.items[0].color, drawn.background})
        if others and grammar.fits(Scene((item,), background)):
            break
    prompt = grammar.write(Scene((Item(item.color, None),), background))
    image = drawn_scenes([drawn], case.seeds, STREAM)
    made = generate(case.parts, [prompt], seeds=case.seeds, style=reference(image), settings=case.settings).images[0]
    case.show(f"{grammar.write(drawn)} | {prompt}", image[0], made)
    seen = describe(made)
    found = seen.items[0] if len(seen.items) == 1 else None
    right = found is not None and (found.color, seen.background) == (item.color, background)
    yield Judged(f"{name}: {SHAPE}", float(found is not None and found.shape == item.shape))
    yield Judged(f"{name}: {COLORS_OF_PROMPT}", float(right))


def _aligned(case: Case) -> Iterator[Judged]:
    """A batch of four shapes whose prompts name no color."""
    shapes = [grammar.SHAPES[int(i)] for i in case.rng.permutation(len(grammar.SHAPES))][:BATCH]
    prompts = [grammar.write(Scene((Item(None, shape),))) for shape in shapes]
    seeds = [case.seeds[0] + 1000 * i for i in range(BATCH)]
    for question, weight in ((ALIGNED, 1.0), (SEPARATE, 0.0)):
        images = generate(case.parts, prompts, seeds=seeds, style_aligned=weight, settings=case.settings).images
        for prompt, image in zip(prompts, images, strict=True):
            case.show(prompt, image)
        seen = [describe(image) for image in images]
        alone = all(len(each.items) == 1 for each in seen)
        looks = {(each.items[0].color, each.background) for each in seen if each.items}
        yield Judged(question, float(alone and len(looks) == 1))


def _one(rng: np.random.Generator) -> Scene:
    """A whole scene of one shape."""
    while True:
        scene = grammar.sample(rng)
        if len(scene.items) == 1:
            return grammar.complete(scene, rng)


def _kind(
    measure: Callable[[str, Callable[[Tensor], StyleReference | None], Case], Iterator[Judged]],
    name: str,
    reference: Callable[[Tensor], StyleReference | None],
    aims: Mapping[str, float | None],
) -> Kind:
    return Kind(
        lambda case: measure(name, reference, case), {f"{name}: {question}": aim for question, aim in aims.items()}
    )


LOOK, CONTENT = {COLORS: 0.85, SHAPE_AND_PLACE: 0.85}, {SHAPE: 0.75, COLORS_OF_PROMPT: 0.75}
PLAIN_LOOK, PLAIN_CONTENT = dict.fromkeys(LOOK), dict.fromkeys(CONTENT)

KINDS: Mapping[str, Kind] = {
    "style": _kind(_styled, "style", lambda image: StyleReference(image=image), LOOK),
    "corrected style": _kind(
        _styled, "style, 3 corrections a step", lambda image: StyleReference(image=image, control=ControlSteps()), LOOK
    ),
    "no style": _kind(_styled, "without it", lambda _: None, PLAIN_LOOK),
    "content": _kind(_with_content, "content", lambda image: StyleReference(content=image), CONTENT),
    "no content": _kind(_with_content, "without a content", lambda _: None, PLAIN_CONTENT),
    "shared style": Kind(_aligned, {ALIGNED: 0.90, SEPARATE: None}),
}
"""Name -> kind. A new row is a kind here."""


def evaluate_style(
    parts: Parts, *, cases: int = 100, settings: Settings = SETTINGS, on_progress: OnProgress | None = None
) -> Evaluation:
    """Judge so many cases of each of `KINDS`, always the same ones.

    parts: of the tiny cascade. Raises as `pipelines.generate`.
    """
    report = on_progress or (lambda _what, _done, _all: None)
    judged: list[Judged] = []
    samples: list[Sample] = []
    for name, kind in KINDS.items():
        for i in range(cases):
            # The same cases with and without references.
            judged += kind.measure(Case(FIRST + i, parts, settings, samples))
            report(name, i + 1, cases)
    aims = {question: aim for kind in KINDS.values() for question, aim in kind.aims.items()}
    return Evaluation(to_rows(judged, aims), tuple(samples))
