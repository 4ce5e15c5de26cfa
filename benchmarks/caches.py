"""What the caches across steps cost in quality, on the tiny cascade, and what they save, at the released size.

    python benchmarks/caches.py             # about 5 minutes on two cores
    python benchmarks/caches.py --small     # half of the prompts

Each way to use work again samples the same prompts with the same seeds as the plain run: how many images show all that
their prompt says, and how close they are to the plain run's (PSNR). The work of a run is that of its calls, relative to
the plain run's: of Stage C 1B and Stage B 700M at 1024 x 1024, counted and not timed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import arguments, machine, print_table
from steps import KINDS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cascade import tiny
from cascade.diffusion import Cache, CacheRun, SamplingSettings
from cascade.images import psnr
from cascade.models import STAGE_B_700M, STAGE_C_1B
from cascade.pipelines import Parts, generate
from cascade.tiny import grammar
from cascade.tiny.analysis import describe
from cascade.tiny.evaluation import BATCH, SETTINGS, held_out_scenes, judge

ALL = "all that the prompt says"


@dataclass(frozen=True)
class Way:
    """One way to use work again in both stages."""

    stage_c: Cache | None = None
    stage_b: Cache | None = None

    def __str__(self) -> str:
        stages = {"C": self.stage_c, "B": self.stage_b}
        return "; ".join(f"{stage}: {_words(cache)}" for stage, cache in stages.items() if cache)


def _words(cache: Cache) -> str:
    given = {field.name: getattr(cache, field.name) for field in fields(cache)}
    return ", ".join(f"{name} {value:g}" for name, value in given.items() if value != getattr(Cache(), name))


INNER, CFG = Cache(inner_every=2), Cache(cfg_every=2)
IN_BOTH = {
    "little cached": Way(Cache(inner_every=2, cfg_every=2, start_percent=0.2), Cache(cfg_every=10)),
    "much cached": Way(Cache(inner_every=2, cfg_every=2), Cache(inner_every=2, cfg_every=10)),
}
"""In both stages at once."""
WAYS = (
    Way(INNER),
    Way(Cache(inner_every=3)),
    Way(Cache(inner_every=2, start_percent=0.2)),
    Way(Cache(inner_every=5, threshold=0.4)),
    Way(Cache(inner_every=5, threshold=0.6)),
    Way(CFG),
    Way(Cache(cfg_every=4)),
    Way(None, INNER),
    Way(None, CFG),
    Way(None, Cache(cfg_every=10)),
    Way(None, Cache(inner_every=2, cfg_every=10)),
    *IN_BOTH.values(),
)


def images_of(parts: Parts, prompts: int, way: Way) -> Tensor:
    """The images [n, 3, 256, 256] of the prompts of `evaluate tiny`."""
    scenes = held_out_scenes(prompts, 0)
    settings = replace(
        SETTINGS,
        stage_c=replace(SETTINGS.stage_c, cache=way.stage_c),
        stage_b=replace(SETTINGS.stage_b, cache=way.stage_b),
    )
    made = []
    for first in range(0, prompts, BATCH):
        captions = [grammar.write(scene) for scene in scenes[first : first + BATCH]]
        seeds = range(first, first + len(captions))
        made.append(generate(parts, captions, seeds=seeds, settings=settings).images)
    return torch.cat(made)


def right(images: Tensor) -> float:
    """The share that shows all that the prompt says."""
    scenes = held_out_scenes(len(images), 0)
    answers = [answer for scene, image in zip(scenes, images) for answer in judge(scene, describe(image))]
    return statistics.mean(answer.answer for answer in answers if answer.question == ALL)


@dataclass(frozen=True)
class Work:
    """FLOP of a step's call with cfg and of one with the prompt alone, whole and without the inner levels."""

    guided: float
    guided_outer: float
    alone: float
    alone_outer: float

    def of_run(self, settings: SamplingSettings, cache: Cache) -> float:
        """The share of the plain run's work that a run with a cache does: it decides as the sampler's would."""
        caching, work = CacheRun(cache), 0.0

        def call(alone: bool, percent: float) -> Tensor:
            nonlocal work
            whole, outer = (self.alone, self.alone_outer) if alone else (self.guided, self.guided_outer)
            around = caching.around_inner(("cond",) if alone else ("cond", "uncond"), percent)
            before, x = caching.inner_reused, torch.ones(1 if alone else 2, 1, 1, 1)
            if around is not None:
                around(lambda x: x, x)
            work += outer if caching.inner_reused > before else whole
            return x[:1]

        for level in settings.noise_levels():
            both = lambda: (call(False, level.percent),) * 2  # noqa: B023, E731  called at once
            caching.predictions(level.percent, both, lambda: call(True, level.percent))  # noqa: B023
        return work / (settings.steps * self.guided)


def work_of(kind: str, config: Any, side: int) -> Work:
    """A stage's, counted without computing it."""
    cls, arguments_of = KINDS[kind]
    with torch.device("meta"):
        net = cls(config)

        def flop(batch: int, outer: bool) -> float:
            x, given = arguments_of(config, batch, side, "meta", torch.float32)
            size = {"size": x.shape[-2:]} if kind == "stage_b" else {}
            conditions, around = net.conditions(*given, **size), (lambda _, x: x) if outer else None
            with FlopCounterMode(display=False) as counter:
                net.denoise(x, torch.full((batch,), 0.5), conditions, around_inner=around)
            return float(counter.get_total_flops())

        return Work(*(flop(batch, outer) for batch in (2, 1) for outer in (False, True)))


def rows(prompts: int, both: tuple[Work, Work]) -> Iterator[list[str]]:
    parts = Parts(tiny.parts())
    plain = images_of(parts, prompts, Way())

    def share(stage: int, way: Way) -> str:
        cache, settings = ((way.stage_c, SETTINGS.stage_c), (way.stage_b, SETTINGS.stage_b))[stage]
        if cache is None:
            return "1"
        # A threshold's answer depends on the images.
        return "" if cache.threshold else f"{both[stage].of_run(settings, cache):.2f}"

    yield ["nothing", f"{100 * right(plain):.1f} %", "", "1", "1"]
    for way in WAYS:
        images = images_of(parts, prompts, way)
        near = statistics.median(psnr(image, other) for image, other in zip(images, plain))
        yield [str(way), f"{100 * right(images):.1f} %", f"{near:.1f} dB", share(0, way), share(1, way)]


@torch.inference_mode()
def main() -> None:
    options = arguments(__doc__ or "", repeats=3)
    prompts = BATCH if options.small else 2 * BATCH
    both = work_of("stage_c", STAGE_C_1B, 24), work_of("stage_b", STAGE_B_700M, 256)
    for stage, found in zip("CB", both):
        inner = 1 - found.guided_outer / found.guided
        print(f"Stage {stage}: a step with cfg {found.guided / 1e12:.2f} TFLOP, of which the inner levels {inner:.0%}")
    lines = []
    for row in rows(prompts, both):
        print(*row, sep=" | ", flush=True)
        lines.append(row)
    print(f"\n{machine()}; {prompts} prompts\n")
    print_table(["used again", ALL, "PSNR to the plain run", "work, Stage C", "work, Stage B"], lines)


if __name__ == "__main__":
    main()
