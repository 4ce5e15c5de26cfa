"""What the tiny cascade makes of images: image to image by strength, and reconstruction by compression.

    python benchmarks/image_inputs.py              # some minutes on one core
    python benchmarks/image_inputs.py --images 2 # a trial
    python benchmarks/image_inputs.py --write      # the tables go into docs/image-inputs.md

A source is drawn from one scene of the grammar, the prompt is that of another; training drew neither. Distance is the
mean difference of pixels in 255ths; the prompt score is the share of what the prompt says that image analysis finds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from common import table, write_into
from torch import Tensor

from cascade import tiny
from cascade.images import psnr, ssim
from cascade.pipelines import ImageToImage, Parts, generate, reconstruct
from cascade.tiny import grammar
from cascade.tiny.analysis import describe
from cascade.tiny.drawing import draw
from cascade.tiny.evaluation import SETTINGS, held_out_scenes, judge
from cascade.tiny.grammar import Scene

PAGE = Path(__file__).resolve().parent.parent / "docs" / "image-inputs.md"
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MIDDLE = 0.6
COMPRESSIONS = (32.0, 42.67, 64.0)


def distance(images: Tensor, others: Tensor) -> float:
    return float((images - others).abs().mean()) * 255


def score(images: Tensor, scenes: Sequence[Scene]) -> float:
    answers = [answer.answer for image, scene in zip(images, scenes) for answer in judge(scene, describe(image))]
    return sum(answers) / len(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12, help="how many sources and prompts (default: 12)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/image-inputs.md")
    options = parser.parse_args()
    number = options.images
    torch.set_num_threads(1)
    scenes = held_out_scenes(2 * number, seed=5)
    drawn = [draw(scene, np.random.default_rng((5, i, 3))) for i, scene in enumerate(scenes[:number])]
    sources = torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 255
    prompts, seeds, parts = [grammar.write(scene) for scene in scenes[number:]], range(number), Parts(tiny.parts())

    def run(name: str, **given: float | bool) -> list[str]:
        source = ImageToImage(images=sources, **given)
        images = generate(parts, prompts, seeds=seeds, source=source, settings=SETTINGS).images
        near = (distance(images, sources), sum(map(psnr, images, sources)) / number)
        return [name, f"{near[0]:.1f}", f"{near[1]:.1f} dB", f"{100 * score(images, scenes[number:]):.0f} %"]

    about = f"{number} sources and prompts, default settings, 256 x 256:\n\n"
    found = ("distance to the source", "PSNR to the source", "prompt")
    strengths = table(["strength", *found], [run(f"{strength}", strength=strength) for strength in STRENGTHS])
    forms = {
        "as it is": {},
        "Stage B with 0.9": {"strength_b": 0.9},
        "Stage B with 0.7": {"strength_b": 0.7},
        "Stage B with 0.5": {"strength_b": 0.5},
        "noised as released": {"as_released": True},
    }
    head = [f"strength {MIDDLE}", *found]
    compared = table(head, [run(name, strength=MIDDLE, **given) for name, given in forms.items()])
    rows = []
    for compression in COMPRESSIONS:
        result = reconstruct(parts, sources, seeds=seeds, settings=SETTINGS.stage_b, compression=compression)
        pairs = list(zip(result.images, sources))
        latent = " x ".join(map(str, result.stage_c.shape[1:]))
        means = [sum(measure(a, b) for a, b in pairs) / number for measure in (psnr, ssim)]
        rows.append([f"{compression:g}", latent, f"{means[0]:.2f} dB", f"{means[1]:.3f}"])
    tables = {
        "strength": f"{about}{strengths}\n\n{compared}",
        "reconstruction": about + table(["compression", "latent", "PSNR", "SSIM"], rows),
    }
    for name, text in tables.items():
        print(text, end="\n\n")
        if options.write:
            write_into(PAGE, name, text)


if __name__ == "__main__":
    main()
