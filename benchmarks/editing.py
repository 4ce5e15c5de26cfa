"""One guided step of Stage C at 1024 x 1024 with control of attention, beside the plain one: time and memory.

    python benchmarks/editing.py            # the 1B, float32, random weights: 4 GB for them
    python benchmarks/editing.py --large    # the 3.6B in bfloat16: 7.2 GB
    python benchmarks/editing.py --small    # a trial of the script

The step of an edit makes two images, and so does that of a shared style: both are compared with a plain step of two.
Time is the processor's. Memory is the growth of the resident set during a step (Linux), beside the weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from common import SMALL_C, arguments, interleaved, machine, print_table, with_random_weights
from load_once import resident
from memory import forget_peak

from cascade.conditioning import StageCInputs, TextEmbedding
from cascade.editing import (
    AdapterTokens,
    Alignment,
    AttentionController,
    EditStrength,
    IPAdapters,
    PlacedImages,
    PromptImages,
    PromptToPrompt,
    References,
    Region,
    Regions,
    SeenImages,
    StyleAligned,
    WordMaps,
    box_mask,
)
from cascade.models import STAGE_C_1B, STAGE_C_3_6B, StageC, StageCConfig
from cascade.models.ip_adapter import attention_widths
from cascade.pipelines import STAGE_C_SETTINGS, StagePlan, sample_stage_c

TEXT = 77
ADAPTER_TOKENS = 16
"""Of an image, by an IP-Adapter of the released sizes."""
SAME = Alignment(torch.eye(TEXT), torch.zeros(TEXT), (1,), (1,))
ALL = EditStrength(text=1.0, image=1.0, pooled=0.0)


def text_of(config: StageCConfig, images: int, seed: int) -> TextEmbedding:
    made = torch.Generator().manual_seed(seed)
    hidden = torch.randn(images, TEXT, config.clip_text, generator=made)
    return TextEmbedding(hidden, torch.randn(images, 1, config.clip_text_pooled, generator=made))


Made = Callable[[], AttentionController | None]


def controllers(config: StageCConfig, widths: Sequence[int]) -> dict[str, tuple[int, Made]]:
    """Name -> images of the step, and what makes a controller of it. widths: of the attention blocks."""
    left, right = ((0, 0, 0.5, 1), (0.5, 0, 1, 1))
    two = [Region(box_mask(box), text_of(config, 1, seed)) for seed, box in enumerate((left, right))]
    made = torch.Generator().manual_seed(5)
    image = torch.randn(1, 1, config.clip_img, generator=made)
    placed = PlacedImages(images=PromptImages(image, (0.5,)), mask=box_mask(left))
    tokens = [torch.randn(1, ADAPTER_TOKENS, width, generator=made) for width in widths]
    adapted = AdapterTokens(keys_values=[(each, each) for each in tokens])
    return {
        "plain, 1 image": (1, lambda: None),
        "plain, 2 images": (2, lambda: None),
        "edit": (2, lambda: PromptToPrompt(SAME, ALL)),
        "edit with blend": (2, lambda: PromptToPrompt(SAME, replace(ALL, blend=0.3))),
        "map of words": (1, WordMaps),
        "2 regions": (1, lambda: Regions(two)),
        "style": (1, lambda: References(style=image)),
        "style and content": (1, lambda: References(style=image, content=image)),
        "shared style": (2, StyleAligned),
        "image prompt": (1, lambda: SeenImages([placed])),
        "IP-Adapter": (1, lambda: IPAdapters([adapted])),
    }


def step(net: StageC, images: int, make: Made, side: int) -> torch.Tensor:
    """One guided step of so many images."""
    config, controller = net.config, make()
    cond = StageCInputs.without_image(text_of(config, images, 1), config.clip_img)
    cond = cond if controller is None else controller.inputs(cond)
    plan = StagePlan(
        stage="stage_c",
        size=(config.latent_channels, side, side),
        seeds=range(images),
        settings=replace(STAGE_C_SETTINGS, steps=1),
        cond=cond,
        uncond=cond.unconditional(text_of(config, 1, 2)),
        attention=controller,
        keeping=controller.keeping if isinstance(controller, PromptToPrompt) else None,
    )
    return sample_stage_c(net, plan)


def grown(run: Callable[[], object]) -> int:
    """Bytes by which the resident set grows while it runs."""
    forget_peak()
    before = resident("VmRSS")
    run()
    return max(0, resident("VmHWM") - before)


def main() -> None:
    options = arguments(__doc__ or "", repeats=3, large="the 3.6B in bfloat16")
    if not sys.platform.startswith("linux"):
        raise SystemExit("This reads /proc, which Linux has.")
    config = SMALL_C if options.small else STAGE_C_3_6B if options.large else STAGE_C_1B
    dtype, side = torch.bfloat16 if options.large else torch.float32, 8 if options.small else 24
    with torch.device("meta"):
        net = StageC(config).to(dtype)
    with_random_weights(net)
    kinds = controllers(config, attention_widths(net))
    sides = {
        name: lambda images=images, make=make: step(net, images, make, side) for name, (images, make) in kinds.items()
    }
    with torch.no_grad():
        seconds = interleaved(sides, options.repeats, time.process_time)
        memory = {name: grown(run) for name, run in sides.items()}
    name = "small" if options.small else "3.6B, bfloat16" if options.large else "1B, float32"
    print(f"{machine()}; {name}\n")
    rows = []
    for kind, (images, _) in kinds.items():
        plain = "plain, 1 image" if images == 1 else "plain, 2 images"
        ratio = f"{seconds[kind] / seconds[plain]:.2f}"
        rows.append([kind, f"{seconds[kind]:.2f} s", ratio, f"{memory[kind] / 1e9:.2f} GB"])
    print_table(["a step", "time", "of the plain one", "memory"], rows)


if __name__ == "__main__":
    main()
