"""How well the tiny cascade's ControlNets do what they are for: fixed cases, measured by `analysis`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import canny, inpaint_hint, normalize, outpaint, psnr, shrink, sketch, super_resolution_hint
from ..models import ControlNet
from ..pipelines import Control, Generated, ImageToImage, Parts, Settings, generate
from . import grammar
from .analysis import describe, foreground, outline_overlap
from .evaluation import BATCH, SETTINGS, Evaluation, Judged, OnProgress, Sample, drawn_scenes, to_rows
from .grammar import Item, Scene

AIMS = {
    "canny: overlap of the outlines (IoU)": 0.85,
    "canny: the colors are the prompt's": 0.90,
    "inpainting: the hole has what the prompt says": 0.85,
    "inpainting: the rest is the source, bit for bit": 1.0,
    "outpainting: the background goes on": 0.90,
    "sketch: overlap of the outlines (IoU)": 0.8,
    "sketch: the colors are the prompt's": 0.90,
    "super resolution: closer to the true image than bicubic": 0.90,
    "super resolution: the same colors and shapes": None,
}
"""The questions in the order of the table, and the score to reach."""

MARGIN = 80
"""Pixels of 256 that outpainting adds on one side."""


def evaluate_control(
    parts: Parts,
    nets: Mapping[str, ControlNet],
    *,
    cases: int = 100,
    settings: Settings = SETTINGS,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Generate and judge so many cases of each kind, always the same ones.

    parts: those of the tiny cascade. nets: canny, sketch, inpainting and super_resolution. settings: the released ones
    where none are given. Raises as `pipelines.generate`.
    """
    report = on_progress or (lambda _what, _done, _all: None)
    judged: list[Judged] = []
    samples: list[Sample] = []
    kinds: dict[str, Callable[..., Iterator[Judged]]] = {
        "canny": partial(_lines, what="canny", filter_=canny, net=nets["canny"]),
        "inpainting": partial(_inpaint, net=nets["inpainting"]),
        "outpainting": partial(_outpaint, net=nets["inpainting"]),
        "super resolution": partial(_enlarge, net=nets["super_resolution"]),
        "sketch": partial(_lines, what="sketch", filter_=sketch, net=nets["sketch"]),
    }
    for number, (kind, measure) in enumerate(kinds.items()):
        for first in range(0, cases, BATCH):
            seeds = [1000 * (number + 1) + i for i in range(first, min(first + BATCH, cases))]
            judged += measure(_Cases(parts, seeds, settings, samples))
            report(kind, first + len(seeds), cases)
    return Evaluation(to_rows(judged, AIMS), tuple(samples))


@dataclass(frozen=True)
class _Cases:
    """Some cases: a seed each, and where their images are kept."""

    parts: Parts
    seeds: Sequence[int]
    settings: Settings
    samples: list[Sample]

    def scenes(self, pair: bool | None = None) -> list[Scene]:
        """A complete scene for each seed, with two shapes, one, or either."""
        return [_scene(np.random.default_rng((seed, 0, 3)), pair) for seed in self.seeds]

    def drawn(self, scenes: Sequence[Scene]) -> Tensor:
        return drawn_scenes(scenes, self.seeds, 4)

    def generate(self, scenes: Sequence[Scene], hints: Tensor, net: ControlNet, **options: Any) -> Tensor:
        """Images of the scenes' captions, as the hints show them."""
        captions = [grammar.write(scene) for scene in scenes]
        control = Control(net=net, hint=hints)
        made: Generated = generate(
            self.parts, captions, seeds=self.seeds, controls=[control], settings=self.settings, **options
        )
        self.samples.extend(Sample(caption, image) for caption, image in zip(captions, made.images))
        return made.images


def _scene(rng: np.random.Generator, pair: bool | None) -> Scene:
    while True:
        scene = grammar.complete(grammar.sample(rng), rng)
        if pair is None or (len(scene.items) == 2) == pair:
            return scene


def _recolored(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same shapes in the same places, all colors others than before."""
    while True:
        items = tuple(replace(item, color=str(rng.choice(grammar.COLORS))) for item in scene.items)
        new = Scene(items, str(rng.choice(grammar.COLORS)))
        changed = [a.color != b.color for a, b in zip(items, scene.items)]
        if all(changed) and new.background != scene.background and grammar.fits(new):
            return new


def _lines(cases: _Cases, net: ControlNet, what: str, filter_: Callable[[Tensor], Tensor]) -> Iterator[Judged]:
    """Edges or lines of a drawn image, with a prompt of other colors."""
    scenes = cases.scenes()
    drawn = cases.drawn(scenes)
    prompts = [_recolored(scene, np.random.default_rng((seed, 0, 5))) for scene, seed in zip(scenes, cases.seeds)]
    for prompt, image, source in zip(prompts, cases.generate(prompts, filter_(drawn), net), drawn):
        yield Judged(f"{what}: overlap of the outlines (IoU)", outline_overlap(image, source))
        yield Judged(f"{what}: the colors are the prompt's", float(_colors(image, prompt)))


def _colors(image: Tensor, scene: Scene) -> bool:
    seen = describe(image)
    return seen.background == scene.background and sorted(item.color for item in seen.items) == sorted(
        str(item.color) for item in scene.items
    )


# Left, top, right, bottom as parts of the side: around each place of a pair.
_HOLES = {
    "left": (0.02, 0.22, 0.5, 0.78),
    "right": (0.5, 0.22, 0.98, 0.78),
    "top": (0.22, 0.02, 0.78, 0.5),
    "bottom": (0.22, 0.5, 0.78, 0.98),
}


def _inpaint(cases: _Cases, net: ControlNet) -> Iterator[Judged]:
    """One of two shapes is to become another."""
    scenes = cases.scenes(pair=True)
    drawn = cases.drawn(scenes)
    prompts, masks = [], torch.zeros(len(scenes), 1, *drawn.shape[-2:])
    for scene, mask, seed in zip(scenes, masks, cases.seeds):
        rng = np.random.default_rng((seed, 0, 5))
        place = int(rng.integers(2))
        prompts.append(_exchanged(scene, place, rng))
        left, top, right, bottom = (round(256 * side) for side in _HOLES[str(scene.items[place].place)])
        mask[:, top:bottom, left:right] = 1
    images = cases.generate(
        prompts, inpaint_hint(drawn, masks), net, source=ImageToImage(images=drawn, strength=1.0, mask=masks)
    )
    for scene, prompt, image, source, mask in zip(scenes, prompts, images, drawn, masks):
        new = next(b for a, b in zip(scene.items, prompt.items) if a != b)
        found = [item for item in describe(image).items if item.place == new.place]
        right = len(found) == 1 and (found[0].color, found[0].shape) == (new.color, new.shape)
        yield Judged("inpainting: the hole has what the prompt says", float(right))
        kept = torch.equal(image[:, mask[0] == 0], source[:, mask[0] == 0])
        yield Judged("inpainting: the rest is the source, bit for bit", float(kept))


def _exchanged(scene: Scene, place: int, rng: np.random.Generator) -> Scene:
    """The scene with another color and shape in one of its places."""
    while True:
        old = scene.items[place]
        new = Item(str(rng.choice(grammar.COLORS)), str(rng.choice(grammar.SHAPES)), place=old.place)
        changed = Scene(tuple(new if i == place else item for i, item in enumerate(scene.items)), scene.background)
        if new.color != old.color and new.shape != old.shape and grammar.fits(changed):
            return changed


def _outpaint(cases: _Cases, net: ControlNet) -> Iterator[Judged]:
    """A shape on the left, and the right side of the image is not there yet."""
    scenes = [
        Scene((replace(scene.items[0], size="small", place="left"),), scene.background)
        for scene in cases.scenes(pair=False)
    ]
    drawn = cases.drawn(scenes)
    padded, mask = outpaint(drawn[..., :-MARGIN], 0, 0, MARGIN, 0)
    source = ImageToImage(images=padded, strength=1.0, mask=mask)
    images = cases.generate(scenes, inpaint_hint(padded, mask), net, source=source)
    for scene, image in zip(scenes, images):
        # What is not background in the margin, beyond a seam, would be something new.
        new = foreground(image)[:, -MARGIN + 4 :].mean()
        margin = describe(image[..., -MARGIN:].clone())
        goes_on = new < 0.01 and margin.background == scene.background and not margin.items
        yield Judged("outpainting: the background goes on", float(goes_on))


def _enlarge(cases: _Cases, net: ControlNet) -> Iterator[Judged]:
    """A drawn image at half its size, made large again."""
    scenes = cases.scenes()
    drawn = cases.drawn(scenes)
    small = shrink(drawn)
    hints = cases.parts.use("effnet", lambda encoder: _small_hint(encoder, small))
    bicubic = F.interpolate(small, drawn.shape[-2:], mode="bicubic").clamp(0, 1)
    for image, true, plain in zip(cases.generate(scenes, hints, net), drawn, bicubic):
        closer = psnr(image, true) > psnr(plain, true)
        yield Judged("super resolution: closer to the true image than bicubic", float(closer))
        shown, wanted = describe(image), describe(true)
        same = shown.background == wanted.background and _things(shown) == _things(wanted)
        yield Judged("super resolution: the same colors and shapes", float(same))


@torch.no_grad()
def _small_hint(encoder: Any, small: Tensor) -> Tensor:
    return super_resolution_hint(small, lambda x: encoder(normalize(x).to(next(encoder.parameters()))))


def _things(seen: Any) -> list[tuple[str, str]]:
    return sorted((item.color, str(item.shape)) for item in seen.items)
