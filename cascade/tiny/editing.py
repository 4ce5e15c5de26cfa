"""How well images of the tiny cascade, and drawn ones, are edited.

By the prompt, with maps of words, in regions, and by instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..adapters import InstructNetwork
from ..editing import box_mask
from ..pipelines import Parts, RegionalPrompt, Settings, edit, edit_images, follow, generate, invert_images, word_maps
from ..pipelines.edit_images import made_again
from ..pipelines.instruct import CFG
from . import grammar, instructions
from .analysis import Description, Found, describe, foreground
from .evaluation import SETTINGS, Evaluation, Judged, OnProgress, Sample, drawn_scenes, to_rows
from .grammar import Item, Scene

REST = "the rest of the image, PSNR"
MAP = "the map of the shape's word overlaps the shape (IoU)"
REST_OF_DRAWN = "drawn image, the rest, PSNR"
FOLLOWED = "instructions, unseen images"
AGAIN = "drawn image inverted and made again: relative error below 0.001"
AIMS = {
    "color: the new one, all else the same": 0.90,
    "shape: the new one, all else the same": 0.85,
    "background: the new one, all else the same": 0.90,
    REST: 30.0,
    MAP: 0.6,
    "regions: two shapes": 0.90,
    "regions: three shapes": 0.75,
    "drawn image, color: the new one, all else the same": 0.85,
    "drawn image, shape: the new one, all else the same": 0.75,
    "drawn image, background: the new one, all else the same": 0.85,
    REST_OF_DRAWN: 30.0,
    AGAIN: 1.0,
    FOLLOWED: 0.85,
}
"""The questions in the order of the table, and the score to reach."""

SEEDS = 9000
"""The first of the images' seeds: no training image has one of these."""
NEAR, ALIKE = 0.06, 0.06
"""How far a shape may have moved, and how much its radius may have changed, as parts of the side, to be the same."""
CUT = 0.4
"""The part of a map's highest from which on it shows its word."""
EDGE = 6
"""Pixels around a shape that are not compared: its soft edge."""
UNSEEN = ("color", "shape", "background")
"""Instructions that can lead to a combination that was kept from training."""
PLACES = {
    2: (
        {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1)},
        {"top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)},
    ),
    3: (
        {"left": (0, 0.4, 0.5, 1), "right": (0.5, 0.4, 1, 1), "top": (0.2, 0, 0.8, 0.4)},
        {"left": (0, 0, 0.5, 0.6), "right": (0.5, 0, 1, 0.6), "bottom": (0.2, 0.6, 0.8, 1)},
    ),
}
"""Boxes of regions, by their number and their place in the grammar, which knows two shapes at most."""


@dataclass(frozen=True)
class Case:
    """One case: its number, and where its images are kept."""

    number: int
    parts: Parts
    settings: Settings
    samples: list[Sample]

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng((self.number, 0, 7))

    @property
    def seeds(self) -> list[int]:
        return [SEEDS + self.number]

    def show(self, prompt: str, *images: Tensor) -> None:
        self.samples.extend(Sample(prompt, image) for image in images)


def evaluate_edit(
    parts: Parts,
    network: InstructNetwork,
    *,
    cases: int = 100,
    settings: Settings = SETTINGS,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Edit and judge so many cases of each kind, always the same ones.

    parts, network: of the tiny cascade. Raises as `pipelines.edit`.
    """
    report = on_progress or (lambda _what, _done, _all: None)
    judged: list[Judged] = []
    samples: list[Sample] = []
    kinds: dict[str, Callable[[Case], Iterator[Judged]]] = {
        "color": lambda case: _edited(case, "color", _recolored),
        "shape": lambda case: _edited(case, "shape", _reshaped),
        "background": lambda case: _edited(case, "background", _on_another),
        "word maps": _mapped,
        "two regions": lambda case: _in_regions(case, 2, "regions: two shapes"),
        "three regions": lambda case: _in_regions(case, 3, "regions: three shapes"),
        "color of drawn images": lambda case: _edited_drawing(case, "color", _recolored),
        "shape of drawn images": lambda case: _edited_drawing(case, "shape", _reshaped),
        "background of drawn images": lambda case: _edited_drawing(case, "background", _on_another),
        "instructions": lambda case: _followed(case, network),
    }
    for place, (kind, measure) in enumerate(kinds.items()):
        for i in range(cases):
            judged += measure(Case(1000 * place + i, parts, settings, samples))
            report(kind, i + 1, cases)
    return Evaluation(to_rows(judged, AIMS), tuple(samples))


Change = Callable[[Scene, np.random.Generator], Scene]


def _recolored(scene: Scene, rng: np.random.Generator) -> Scene:
    return replace(scene, items=(replace(scene.items[0], color=grammar.choice(rng, grammar.COLORS)),))


def _reshaped(scene: Scene, rng: np.random.Generator) -> Scene:
    return replace(scene, items=(replace(scene.items[0], shape=grammar.choice(rng, grammar.SHAPES)),))


def _on_another(scene: Scene, rng: np.random.Generator) -> Scene:
    return replace(scene, background=grammar.choice(rng, grammar.COLORS))


def _edited(case: Case, kind: str, change: Change) -> Iterator[Judged]:
    """One word of a prompt exchanged; the prompt may leave place and size open."""
    rng = case.rng
    while True:
        scene = grammar.sample(rng)
        changed = change(scene, rng) if len(scene.items) == 1 and scene.background else scene
        if changed != scene and grammar.fits(changed):
            break
    prompts = grammar.write(scene), grammar.write(changed)
    result = edit(case.parts, *prompts, seeds=case.seeds, settings=case.settings)
    before, after = result.source.images[0], result.target.images[0]
    case.show(" -> ".join(prompts), before, after)
    seen = describe(before), describe(after)
    yield Judged(f"{kind}: the new one, all else the same", float(_right(kind, changed, *seen)))
    if kind != "background":
        yield Judged(REST, _rest(before, after))


def _edited_drawing(case: Case, kind: str, change: Change) -> Iterator[Judged]:
    """The same of an image that Stage C has not made, through its inversion; its prompt tells all."""
    rng = case.rng
    while True:
        scene = grammar.complete(grammar.sample(rng), rng)
        changed = change(scene, rng) if len(scene.items) == 1 else scene
        if changed != scene and grammar.fits(changed):
            break
    prompts, image = (grammar.write(scene), grammar.write(changed)), drawn_scenes([scene], case.seeds, 7)
    inversion = invert_images(case.parts, image, prompts[0], seeds=case.seeds, settings=case.settings)
    result = edit_images(case.parts, image, inversion, prompts[1], seeds=case.seeds, settings=case.settings)
    before, after = image[0], result.images[0]
    case.show(" -> ".join(prompts), before, after)
    right = _right(kind, changed, describe(before), describe(after))
    yield Judged(f"drawn image, {kind}: the new one, all else the same", float(right))
    if kind != "background":
        yield Judged(REST_OF_DRAWN, _rest(before, after))
    again = made_again(case.parts, inversion, case.settings)
    error = (again - inversion.latents).norm() / inversion.latents.norm()
    yield Judged(AGAIN, float(error < 1e-3))


def _right(kind: str, wanted: Scene, before: Description, after: Description) -> bool:
    if not before.items or len(before.items) != len(after.items):
        return False
    old, new = before.items[0], after.items[0]
    expected = {
        "color": (wanted.items[0].color, old.shape, before.background),
        "shape": (old.color, wanted.items[0].shape, before.background),
        "background": (old.color, old.shape, wanted.background),
    }[kind]
    return (new.color, new.shape, after.background) == expected and _same_place(old, new)


def _same_place(old: Found, new: Found) -> bool:
    return _away(old, new) < NEAR and abs(new.radius - old.radius) < ALIKE


def _away(old: Found, new: Found) -> float:
    return float(np.hypot(new.center[0] - old.center[0], new.center[1] - old.center[1]))


def _rest(before: Tensor, after: Tensor) -> float:
    """dB, of what is neither the old nor the new shape."""
    shapes = ndimage.binary_dilation(foreground(before) | foreground(after), iterations=EDGE)
    error = (before - after).square().mean(0)[torch.from_numpy(np.logical_not(shapes))].mean()
    return float(-10 * error.clamp_min(1e-8).log10())


def _mapped(case: Case) -> Iterator[Judged]:
    """The map of the shape's word, cut at a part of its highest, over the shape that is seen."""
    rng = case.rng
    while True:
        scene = grammar.sample(rng)
        if len(scene.items) == 1 and scene.background and grammar.fits(scene):
            break
    prompt, word = grammar.write(scene), str(scene.items[0].shape)
    made, maps = word_maps(case.parts, prompt, [word], seeds=case.seeds, settings=case.settings)
    shape, found = foreground(made.images[0]), (maps[word][0, 0] > CUT).numpy()
    case.show(prompt, made.images[0], maps[word][0].expand(3, -1, -1))
    yield Judged(MAP, float((shape & found).sum() / max(1, (shape | found).sum())))


def _in_regions(case: Case, count: int, question: str) -> Iterator[Judged]:
    rng = case.rng
    background = grammar.choice(rng, grammar.COLORS)
    colors = [color for color in grammar.COLORS if color != background]
    boxes = PLACES[count][int(rng.integers(2))]
    items = [Item(grammar.choice(rng, colors), grammar.choice(rng, grammar.SHAPES), place=place) for place in boxes]
    regions = [RegionalPrompt(box_mask(boxes[str(item.place)]), _twice(item, background)) for item in items]
    base = _twice(
        Item(grammar.choice(rng, colors), grammar.choice(rng, grammar.SHAPES), place=items[0].place), background
    )
    image = generate(case.parts, [base], seeds=case.seeds, regions=regions, settings=case.settings).images[0]
    case.show(", ".join(f"{item.color} {item.shape}" for item in items) + f" on {background}", image)
    seen = describe(image)
    right = seen.background == background and len(seen.items) == count
    yield Judged(question, float(right and all(_has(seen, item, boxes[str(item.place)]) for item in items)))


def _twice(item: Item, background: str) -> str:
    """The item at its place and at the opposite one: the network draws several shapes where a prompt has several."""
    pair = next(pair for pair in (("left", "right"), ("top", "bottom")) if item.place in pair)
    return grammar.write(Scene(tuple(replace(item, place=place) for place in pair), background))


def _has(seen: Description, item: Item, box: tuple[float, ...]) -> bool:
    """Whether the item is in its box."""
    left, top, right, bottom = box
    return any(
        (found.color, found.shape) == (item.color, item.shape)
        and left < found.center[0] < right
        and top < found.center[1] < bottom
        for found in seen.items
    )


def _followed(case: Case, network: InstructNetwork) -> Iterator[Judged]:
    """A drawn image changed by an instruction, each kind in turn; half of those that can show unseen combinations."""
    kinds = list(instructions.KINDS)
    kind, again = kinds[case.number % len(kinds)], case.number // len(kinds)
    rng = case.rng
    wanted = instructions.sample(rng, kind, unseen=kind in UNSEEN and again % 2 == 0)
    drawn, _ = instructions.draw(wanted, rng)
    source = torch.from_numpy(drawn).movedim(-1, 0)[None].float() / 255
    stage_c = case.settings.stage_c
    settings = replace(case.settings, stage_c=replace(stage_c, guidance=replace(stage_c.guidance, cfg=CFG)))
    made = follow(case.parts, source, wanted.instruction, network, seeds=case.seeds, settings=settings)
    before, after = source[0], made.images[0]
    case.show(wanted.instruction, before, after)
    right = _as_told(kind, wanted.after, describe(before), describe(after))
    yield Judged(FOLLOWED, float(right), not grammar.fits(wanted.after))


def _as_told(kind: str, wanted: Scene, before: Description, after: Description) -> bool:
    if len(before.items) != 1 or len(after.items) != 1:
        return False
    (item,), old, new = wanted.items, before.items[0], after.items[0]
    if (new.color, new.shape, after.background) != (item.color, item.shape, wanted.background):
        return False
    if kind == "place":
        return new.place == item.place and abs(new.radius - old.radius) < ALIKE
    if kind == "size":
        return new.size == item.size and _away(old, new) < NEAR
    return _same_place(old, new)
