"""How well images of a tiny cascade match their prompts, measured by `analysis`, beside the scores to reach."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..adapters import Applied, Lora
from ..images import psnr, to_pillow
from ..models import StageA
from ..pipelines import Parts, Settings, generate, reconstruct
from . import flat, grammar, hearts
from .analysis import Description, Found, describe, outline_overlap
from .drawing import HEART, OUTLINES, draw
from .grammar import Item, Scene

SETTINGS = Settings(width=256, height=256)
"""The released sampling, at the size the tiny cascade was trained on."""

BATCH = 20
# Of every this many prompts one measures a variation, and one a reconstruction.
PROMPTS_PER_IMAGE, PROMPTS_PER_NEGATIVE = 3, 40


@dataclass(frozen=True)
class Judged:
    """The answer to a question about one image: 1 or 0, or a value in dB. `unseen`: training never saw such a one."""

    question: str
    answer: float
    unseen: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the table. `answers` of its question; `aim` None where none was set.

    `unit`: "%" for shares in [0, 1], else dB or px.
    """

    question: str
    answers: tuple[Judged, ...]
    aim: float | None = None
    unit: str = "%"

    @property
    def reached(self) -> float:
        """The mean of the answers; not a number without any."""
        return _mean([judged.answer for judged in self.answers])

    def among(self, *, unseen: bool) -> float:
        """The mean among the prompts with, or without, a combination that training never saw."""
        return _mean([judged.answer for judged in self.answers if judged.unseen == unseen])


@dataclass(frozen=True)
class Sample:
    """An image [3, H, W] in [0, 1] and the prompt it was generated from."""

    prompt: str
    image: Tensor


@dataclass(frozen=True)
class Evaluation:
    """The rows of the table, and the images of the prompts."""

    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]

    def markdown(self) -> str:
        """The table; a share stands with its 95 % Wilson interval."""
        lines = ["| what | aim | reached | 95 % interval | n | trained combinations | never trained on |"]
        lines.append("|---|---|---|---|---|---|---|")
        return "\n".join([*lines, *(_line(row) for row in self.rows)]) + "\n"


AIMS = {
    "background color": 0.97,
    "shape color": 0.95,
    "shape": 0.90,
    "place": 0.95,
    "size": 0.90,
    "both of two shapes": 0.80,
    "the right number of shapes": None,
    "all that the prompt says": None,
    "reconstruction (encoder, Stage B, Stage A), PSNR": 24.0,
    "reconstruction, same shapes": 0.95,
    "Stage A alone, PSNR": 34.0,
    "reconstruction of other kinds of drawings, PSNR": 26.0,
    "reconstruction of other kinds of drawings, overlap of the outlines (IoU)": 0.85,
    "image variation, same color and shape": 0.85,
    "a color in the negative prompt does not appear": None,
    "that color does not appear without a negative prompt": None,
}
"""The questions in the order of the table, and the score to reach."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is being measured and the images done of how many."""


def evaluate(
    parts: Parts,
    *,
    prompts: int = 300,
    seed: int = 0,
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Generate and judge `prompts` prompts, and a third as many variations and reconstructions, always the same ones.

    Reconstructions are of the grammar's images, and of drawings of kinds that no training has.

    parts: all seven of the tiny cascade. settings: the released ones where none are given. Raises what
    `pipelines.generate` raises.
    """
    settings = settings or SETTINGS
    judged: list[Judged] = []
    samples: list[Sample] = []
    report = on_progress or (lambda _what, _done, _all: None)
    scenes = held_out_scenes(prompts, seed)
    for first, some in _batches(scenes):
        captions = [grammar.write(scene) for scene in some]
        images = generate(parts, captions, seeds=_seeds(seed, first, len(some)), settings=settings).images
        samples += [Sample(caption, image) for caption, image in zip(captions, images)]
        judged += [answer for scene, image in zip(some, images) for answer in judge(scene, describe(image))]
        report("prompts", first + len(some), prompts)
    count = math.ceil(prompts / PROMPTS_PER_IMAGE)
    for what, measure, scenes in (
        ("reconstructions", _reconstruct, held_out_scenes(count, seed + 1)),
        ("variations", _vary, [s for s in held_out_scenes(2 * count, seed + 2) if len(s.items) == 1][:count]),
    ):
        for first, some in _batches(scenes):
            judged += measure(parts, some, _seeds(seed, first, len(some)), settings)
            report(what, first + len(some), len(scenes))
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        judged += _reconstruct_other_kinds(parts, _seeds(seed, first, len(numbers)), settings)
        report("other kinds of drawings", numbers[-1] + 1, count)
    judged += _keep_away(parts, math.ceil(prompts / PROMPTS_PER_NEGATIVE), seed, settings)
    return Evaluation(to_rows(judged, AIMS), tuple(samples))


LEARNED_WHOLE = "the learned shape, in its color on its background"
LEARNED = "the learned shape"
UNTOUCHED = "prompts without the token, PSNR to the images without the LoRA"
OTHERS = "prompts without the token, all that they say"
OTHERS_BEFORE = "the same without the LoRA"
LORA_AIMS = {LEARNED_WHOLE: None, LEARNED: 0.85, UNTOUCHED: None, OTHERS: None, OTHERS_BEFORE: None}
"""The same for the included LoRA."""


def evaluate_lora(
    parts: Parts,
    lora: Lora,
    *,
    strength: float = 1.0,
    seeds: int = 50,
    prompts: int = 50,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Judge the LoRA's token with `seeds` seeds, and `prompts` prompts without the token, with and without the LoRA.

    parts: as of `evaluate`, without LoRAs. strength: of the LoRA, 1 as trained. Raises as `pipelines.generate`.
    """
    judged: list[Judged] = []
    samples: list[Sample] = []
    report = on_progress or (lambda _what, _done, _all: None)
    taught = replace(parts, loras=(Applied(lora, strength, strength),))
    caption = f"a red {hearts.TOKEN} on a white background"
    for first in range(0, seeds, BATCH):
        numbers = range(first, min(first + BATCH, seeds))
        for image in generate(taught, [caption] * len(numbers), seeds=numbers, settings=SETTINGS).images:
            seen = describe(image, tuple(OUTLINES))
            shown = bool(seen.items) and seen.items[0].shape == HEART
            right = shown and (seen.items[0].color, seen.background) == ("red", "white")
            judged += [Judged(LEARNED, float(shown)), Judged(LEARNED_WHOLE, float(right))]
            samples.append(Sample(caption, image))
        report("the learned token", numbers[-1] + 1, seeds)
    others, shown = judge_others(parts, taught, prompts, report)
    return Evaluation(to_rows([*judged, *others], LORA_AIMS), (*samples, *shown))


def judge_others(parts: Parts, taught: Parts, prompts: int, report: OnProgress) -> tuple[list[Judged], list[Sample]]:
    """What a LoRA changes in prompts without its token, and the images with it. `taught`: `parts` with the LoRA."""
    judged: list[Judged] = []
    samples: list[Sample] = []
    for first, some in _batches(held_out_scenes(prompts, seed=3)):
        captions, numbers = [grammar.write(scene) for scene in some], _seeds(3, first, len(some))
        plain, other = (generate(each, captions, seeds=numbers, settings=SETTINGS).images for each in (parts, taught))
        for scene, before, after in zip(some, plain, other):
            judged.append(Judged(UNTOUCHED, psnr(after, before)))
            for question, image in ((OTHERS, after), (OTHERS_BEFORE, before)):
                answers = {each.question: each.answer for each in judge(scene, describe(image))}
                judged.append(Judged(question, answers["all that the prompt says"]))
            samples.append(Sample(grammar.write(scene), after))
        report("prompts without it", first + len(some), prompts)
    return judged, samples


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Prompts in a fixed mixture: a third have a combination never trained on, a third of both kinds are pairs."""
    scenes = []
    for i in range(count):
        # Three numbers, where training images have two: none of these is one of those.
        rng = np.random.default_rng((seed, i, 1))
        pair, unseen = i // 3 % 3 == 2, i % 3 == 0
        while True:
            scene = grammar.sample(rng)
            if len(scene.items) == (2 if pair else 1) and scene.background is not None:
                break
        scenes.append(_with_unseen(scene, rng) if unseen else scene)
    return scenes


def is_unseen(scene: Scene) -> bool:
    """Whether something in it was kept from training."""
    return scene.background is not None and not grammar.fits(scene)


def _with_unseen(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one item and the background exchanged for a combination kept from training."""
    combinations = grammar.held_out_combinations()
    changed = int(rng.integers(len(scene.items)))
    while True:
        color, shape, background = combinations[int(rng.integers(len(combinations)))]
        items = tuple(
            Item(color, shape, item.size, item.place) if i == changed else item for i, item in enumerate(scene.items)
        )
        if grammar.fits(Scene(items, background), unseen=True):
            return Scene(items, background)


def judge(scene: Scene, seen: Description) -> Iterator[Judged]:
    """What the prompt of `scene` says, as questions about the image; parts left out are not asked for."""
    items = _in_order(scene, seen)
    if len(scene.items) == 2:
        answers = {"both of two shapes": all(map(_same, scene.items, items)) and len(items) == 2}
    else:
        answers = _judge_one(scene.items[0], items[0] if items else None)
    answers["the right number of shapes"] = len(seen.items) == len(scene.items)
    if scene.background is not None:
        answers["background color"] = seen.background == scene.background
    answers["all that the prompt says"] = all(answers.values())
    unseen = is_unseen(scene)
    yield from (Judged(question, float(answer), unseen) for question, answer in answers.items())


def _judge_one(item: Item, found: Found | None) -> dict[str, bool]:
    answers = {
        "shape color": found is not None and found.color == item.color,
        "shape": found is not None and found.shape == item.shape,
    }
    if item.place is not None:
        answers["place"] = found is not None and found.place == item.place
    if item.size is not None:
        answers["size"] = found is not None and found.size == item.size
    return answers


def _in_order(scene: Scene, seen: Description) -> list[Found]:
    """As many of the largest items as the scene has, in its order: from the left, or from the top."""
    axis = 0 if scene.items[0].place in ("left", "right") else 1
    return sorted(seen.items[: len(scene.items)], key=lambda found: found.center[axis])


def _same(item: Item, found: Found) -> bool:
    return (found.color, found.shape, found.place) == (item.color, item.shape, item.place)


def drawn_scenes(scenes: Sequence[Scene], seeds: Sequence[int], stream: int) -> Tensor:
    """Images [n, 3, 256, 256] in [0, 1] of scenes; `stream` keeps a seed's random numbers apart from its others."""
    rngs = [np.random.default_rng((seed, 0, stream)) for seed in seeds]
    return _to_tensor([draw(scene, rng) for scene, rng in zip(scenes, rngs)])


def _to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """Drawn images [h, w, 3] as [n, 3, h, w] in [0, 1]."""
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 255


def _reconstruct(parts: Parts, scenes: Sequence[Scene], seeds: Sequence[int], settings: Settings) -> Iterator[Judged]:
    """Through the encoder and Stage B, and through Stage A alone."""
    drawn = drawn_scenes(scenes, seeds, 2)
    again = reconstruct(parts, drawn, seeds=seeds, settings=settings.stage_b).images
    alone = parts.use("stage_a", lambda net: _stage_a(net, drawn))
    for i, scene in enumerate(scenes):
        unseen = is_unseen(scene)
        yield Judged("reconstruction (encoder, Stage B, Stage A), PSNR", psnr(again[i], drawn[i]), unseen)
        yield Judged("Stage A alone, PSNR", psnr(alone[i], drawn[i]), unseen)
        shapes = [[found.shape for found in _in_order(scene, describe(image[i]))] for image in (drawn, again)]
        yield Judged("reconstruction, same shapes", float(shapes[0] == shapes[1]), unseen)


def _reconstruct_other_kinds(parts: Parts, seeds: Sequence[int], settings: Settings) -> Iterator[Judged]:
    """Drawings of the kinds that no training has, each kind in turn, through the encoder and Stage B."""
    kinds = [flat.HELD_OUT_KINDS[seed % len(flat.HELD_OUT_KINDS)] for seed in seeds]
    images = [flat.draw_held_out(kind, np.random.default_rng((seed, 0, 6))) for kind, seed in zip(kinds, seeds)]
    drawn = _to_tensor(images)
    for image, again in zip(drawn, reconstruct(parts, drawn, seeds=seeds, settings=settings.stage_b).images):
        yield Judged("reconstruction of other kinds of drawings, PSNR", psnr(again, image), True)
        overlap = outline_overlap(again, image)
        yield Judged("reconstruction of other kinds of drawings, overlap of the outlines (IoU)", overlap, True)


@torch.no_grad()
def _stage_a(net: StageA, images: Tensor) -> Tensor:
    parameter = next(net.parameters())
    return net.decode(net.encode(images.to(parameter))).float().clamp(0, 1).cpu()


def _vary(parts: Parts, scenes: Sequence[Scene], seeds: Sequence[int], settings: Settings) -> Iterator[Judged]:
    """The image's embedding with the empty prompt."""
    drawn = drawn_scenes(scenes, seeds, 2)
    varied = generate(parts, [""] * len(scenes), seeds=seeds, variation_of=drawn, settings=settings).images
    for scene, image in zip(scenes, varied):
        found, wanted = describe(image).items[:1], scene.items[0]
        same = [(item.color, item.shape) for item in found] == [(wanted.color, wanted.shape)]
        yield Judged("image variation, same color and shape", float(same), is_unseen(scene))


def _keep_away(parts: Parts, count: int, seed: int, settings: Settings) -> Iterator[Judged]:
    """The empty prompt, with each color as the negative prompt, and without."""
    seeds = _seeds(seed, 0, count)

    def colors(negative: str) -> Iterator[tuple[str, ...]]:
        images = generate(parts, [""] * count, seeds=seeds, negative=negative, settings=settings).images
        for seen in map(describe, images):
            yield seen.background, *(item.color for item in seen.items)

    without = list(colors(""))
    for color in grammar.COLORS:
        for present in colors(color):
            yield Judged("a color in the negative prompt does not appear", float(color not in present))
        for present in without:
            yield Judged("that color does not appear without a negative prompt", float(color not in present))


def _batches(scenes: Sequence[Scene]) -> Iterator[tuple[int, Sequence[Scene]]]:
    return ((first, scenes[first : first + BATCH]) for first in range(0, len(scenes), BATCH))


def _seeds(seed: int, first: int, count: int) -> list[int]:
    return [1000 * seed + first + i for i in range(count)]


def to_rows(judged: Sequence[Judged], aims: Mapping[str, float | None]) -> tuple[Row, ...]:
    """A row for each question of `aims`, in their order."""
    return tuple(
        Row(question, tuple(j for j in judged if j.question == question), aim, unit=_unit(question))
        for question, aim in aims.items()
    )


def _line(row: Row) -> str:
    aim = "" if row.aim is None else f">= {_number(row, row.aim)}"
    interval = ""
    if row.unit == "%" and row.answers:
        low, high = wilson(row.reached, len(row.answers))
        interval = f"{100 * low:.1f} to {100 * high:.1f} %"
    split = [_number(row, row.among(unseen=unseen)) for unseen in (False, True)]
    if not any(judged.unseen for judged in row.answers):
        split = ["", ""]
    return f"| {' | '.join([row.question, aim, _number(row, row.reached), interval, str(len(row.answers)), *split])} |"


def _number(row: Row, value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{100 * value:.1f} %" if row.unit == "%" else f"{value:.1f} {row.unit}"


def _unit(question: str) -> str:
    return "dB" if "PSNR" in question else "px" if "(pixels)" in question else "%"


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share in [0, 1] that was found among `count` (Wilson 1927)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def contact_sheet(samples: Sequence[Sample], columns: int = 6) -> Image.Image:
    """The images side by side, each with its prompt below."""
    side, text = max(sample.image.shape[-1] for sample in samples), 40
    rows = math.ceil(len(samples) / columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + text)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, sample in enumerate(samples):
        x, y = i % columns * (side + 4), i // columns * (side + text)
        sheet.paste(to_pillow(sample.image), (x, y))
        pen.text((x + 2, y + side + 2), "\n".join(textwrap.wrap(sample.prompt, side // 6)), fill="black")
    return sheet
