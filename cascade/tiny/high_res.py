"""How well the tiny cascade draws images larger than those of its training, in several ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import HighResGuides
from ..pipelines import HighRes, Parts
from ..pipelines.generate import Run
from ..pipelines.stages import encode_prompts, encode_stage_c
from . import grammar
from .analysis import describe, edge_width
from .evaluation import (
    BATCH,
    SETTINGS,
    Evaluation,
    Judged,
    OnProgress,
    Sample,
    held_out_scenes,
    judge,
    to_rows,
)
from .grammar import Scene

SIDE = SETTINGS.width
"""Pixels of the training's images."""
SIZES = (512, 768)
ENLARGED = "enlarged image"
"""A finished image of the training's size, enlarged and encoded; Stage C does not run again."""
WAYS = ("plain", "second pass", ENLARGED, "guides")
SEED = 4
"""Of the prompts, and of the images' noise."""
WHOLE = 10
"""Of every so many prompts, one is decoded by Stage B and Stage A, for the edges."""

RIGHT, ONE, EDGES = "all that the prompt says", "exactly one shape where one was asked for", "edges (pixels)"
_REACHED = {(512, RIGHT): 0.85, (512, ONE): 0.97, (768, RIGHT): 0.75}
"""The aims of the guides."""

AIMS = {
    f"{SIDE}: {EDGES}": None,
    **{
        f"{size}, {way}: {what}": _REACHED.get((size, what)) if way == "guides" else None
        for size in SIZES
        for what in (RIGHT, ONE, EDGES)
        for way in WAYS
    },
}


def evaluate_high_res(
    parts: Parts, guides: HighResGuides, *, prompts: int = 100, on_progress: OnProgress | None = None
) -> Evaluation:
    """Judge so many prompts at every size and in every way, always the same ones.

    What is in an image is seen in the previewer's image of Stage C's latents, which decide it; edges in whole images.

    parts: of the tiny cascade, the previewer too. Raises as `pipelines.generate`.
    """
    report = on_progress or (lambda _what, _done, _all: None)
    judged: list[Judged] = []
    samples: list[Sample] = []
    scenes = held_out_scenes(prompts, SEED)
    for name, options in _runs(HighRes(guides=guides, resolution=SIDE)):
        for first in range(0, prompts, BATCH):
            some = scenes[first : first + BATCH]
            seeds = [1000 * SEED + first + i for i in range(len(some))]
            made = _made(parts, some, seeds, name.endswith(ENLARGED), options)
            for scene, (seen, whole) in zip(some, made, strict=True):
                judged += _judged(name, scene, seen, whole)
                if whole is not None:
                    samples.append(Sample(f"{name}: {grammar.write(scene)}", whole))
            report(name, first + len(some), prompts)
    return Evaluation(to_rows(judged, AIMS), tuple(samples))


def _runs(high_res: HighRes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The options of every size and way."""
    yield f"{SIDE}", {"settings": SETTINGS}
    for size in SIZES:
        large = replace(SETTINGS, width=size, height=size)
        yield f"{size}, plain", {"settings": large}
        yield f"{size}, second pass", {"settings": replace(SETTINGS, enlarge=size / SIDE)}
        yield f"{size}, {ENLARGED}", {"settings": large}
        yield f"{size}, guides", {"settings": large, "high_res": high_res}


@torch.no_grad()
def _made(
    parts: Parts, scenes: Sequence[Scene], seeds: Sequence[int], enlarged: bool, options: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The previewer's image of each scene at the size of the training, and the whole image of some."""
    captions = [grammar.write(scene) for scene in scenes]
    texts = parts.use("text_encoder", lambda net: encode_prompts(net, [*captions, ""]))

    def run(rows: range) -> Run:
        return Run(
            texts=[texts[captions[i]] for i in rows], negative=texts[""], seeds=[seeds[i] for i in rows], **options
        )

    whole_batch = run(range(len(scenes)))
    latents = _enlarged(parts, whole_batch) if enlarged else parts.use("stage_c", whole_batch.stage_c)
    seen = parts.use("previewer", lambda net: net(latents.to(next(net.parameters()))))
    seen = F.interpolate(seen.float(), (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    whole: dict[int, Tensor] = {}
    for i in range(0, len(scenes), WHOLE):
        whole[i] = run(range(i, i + 1)).from_stage_c(parts, latents[i : i + 1]).images[0]
    return ((image, whole.get(i)) for i, image in enumerate(seen))


def _enlarged(parts: Parts, run: Run) -> Tensor:
    """Stage C's latents of the images that the run would make at the size of the training."""
    small = replace(run, settings=SETTINGS)(parts).images
    return parts.use("effnet", lambda net: encode_stage_c(net, small, run.settings.sizes.stage_c[-2:]))


def _judged(name: str, scene: Scene, seen: Tensor, whole: Tensor | None) -> Iterator[Judged]:
    if name != f"{SIDE}":
        found = describe(seen)
        answers = {each.question: each.answer for each in judge(scene, found)}
        yield Judged(f"{name}: {RIGHT}", answers["all that the prompt says"])
        if len(scene.items) == 1:
            yield Judged(f"{name}: {ONE}", float(len(found.items) == 1))
    if whole is not None and (width := edge_width(whole)) is not None:
        yield Judged(f"{name}: {EDGES}", width)
