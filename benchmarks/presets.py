"""Text to image in each fast way, from the prompt to pixels, taking turns: the tiny cascade, one image of 256 x 256.

    python benchmarks/presets.py           # about a minute
    python benchmarks/presets.py --small   # a trial of the script
    python benchmarks/presets.py --sheet   # also writes docs/images/presets.jpg: the same seeds in each way

Times are those of the processor, so that other work on the machine counts less. Networks are loaded before. A step of
the released networks is a larger part of a run than one of these, so that fewer steps gain more there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from caches import IN_BOTH
from common import arguments, interleaved, machine, print_table
from steps import KINDS

from cascade import tiny
from cascade.checkpoints import load_model
from cascade.pipelines import PRESETS, Parts, Settings, generate
from cascade.pipelines.presets import RELEASED, Preset
from cascade.tiny.evaluation import Sample, contact_sheet

PROMPTS = (
    "a large red circle on a blue background, left",
    "a small yellow star on a black background, top",
    "a green triangle on a white background",
    "a large purple square on an orange background, center",
    "a red square on the left and a blue circle on the right, white background",
    "a yellow triangle on the top and a green star on the bottom, purple background",
)
SHEET = Path(__file__).resolve().parent.parent / "docs" / "images" / "presets.jpg"


def ways() -> dict[str, Preset]:
    """Name -> how both stages are sampled, from the most work to the least."""
    (name, released), *fewer = PRESETS.items()
    cached = {
        cache: Preset(replace(released.stage_c, cache=way.stage_c), replace(released.stage_b, cache=way.stage_b))
        for cache, way in IN_BOTH.items()
    }
    return {name: released, **cached, **dict(fewer)}


def main() -> None:
    options = arguments(__doc__ or "", repeats=7, sheet=f"also write {SHEET.name}")
    side = 64 if options.small else 256
    nets = {kind: load_model(path, part=kind, dtype=torch.float32) for kind, path in tiny.parts().items()}
    sides: dict[str, Callable[[], object]] = {}
    samples: list[Sample] = []
    for name, preset in ways().items():
        parts = Parts(nets, loras=tiny.turbo() if preset.few_steps else [])
        settings = Settings(width=side, height=side, stage_c=preset.stage_c, stage_b=preset.stage_b)
        sides[name] = partial(generate, parts, PROMPTS[:1], seeds=[0], settings=settings)
        if options.sheet:
            images = generate(parts, PROMPTS, seeds=range(len(PROMPTS)), settings=settings).images
            samples += [Sample(f"{name}: {prompt}", image) for prompt, image in zip(PROMPTS, images)]
    if samples:
        sheet = contact_sheet(samples, columns=len(PROMPTS))
        sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4)).save(SHEET, quality=88)
    seconds = interleaved(sides, options.repeats, time.process_time)
    print(f"{machine()}; median of {options.repeats} runs of each\n")
    rows = []
    for name, preset in ways().items():
        steps = " + ".join(str(preset.of(kind).steps) for kind in KINDS)
        rows.append([name, steps, f"{seconds[name]:.3f} s", f"{seconds[name] / seconds[RELEASED]:.2f}"])
    print_table(["way", "steps", "processor time", "ratio"], rows)


if __name__ == "__main__":
    main()
