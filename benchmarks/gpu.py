"""Everything that takes time on a graphics card, of this project, ComfyUI and diffusers: one page, random weights.

    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/gpu.py -o docs/gpu.md    # below 8 minutes on one card
    python benchmarks/gpu.py --small                                      # a trial of the script in a minute, on a CPU

Nothing is downloaded. A side that is not installed, a row that does not fit into the card's memory and one that fails
say so in the table, and so does a row that was not reached in time. A step is a guided one, of prompt and negative
prompt as one batch of 2; in ComfyUI, one step of a run of 5. turbo is its steps without its LoRAs. The work (TFLOP) is
that of the matrix products and convolutions of our network; a rate is compared with the one that the card reaches in a
large matrix product.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import in_host
import torch
from card import HEAD, Build, Card, Row, line
from common import SMALL_A, SMALL_B, SMALL_C, machine, table
from in_host import OURS, THEIRS
from steps import KINDS, arguments_c, decode_flop, network, short, step_flop, step_of
from torch import Tensor

from cascade.adapters import Applied, attach
from cascade.conditioning import StageBInputs, StageCInputs, TextEmbedding
from cascade.diffusion import Cache, SamplingSettings
from cascade.models import (
    STAGE_A,
    STAGE_B_1_5B,
    STAGE_B_700M,
    STAGE_C_1B,
    STAGE_C_3_6B,
    ControlNet,
    ControlNetConfig,
    StageA,
    StageB,
    StageC,
)
from cascade.pipelines import PRESETS, StagePlan, latent_sizes
from cascade.pipelines.presets import RELEASED as RELEASED_PRESET
from cascade.pipelines.presets import Preset
from cascade.pipelines.stages import decode, sample_stage_b, sample_stage_c
from cascade.training.lora_layers import Adapter, Wiring

RELEASED_RUN = PRESETS[RELEASED_PRESET]
CACHES = {"stage_c": Cache(inner_every=2, cfg_every=2, start_percent=0.2), "stage_b": Cache(cfg_every=10)}


@dataclass(frozen=True)
class Size:
    """What is measured: the released networks, or small ones for a trial."""

    stage_c: dict[str, Any]
    stage_b: dict[str, Any]
    stage_a: Any
    pixels: int
    decoded: tuple[int, ...]
    product: int
    """Side of the matrices whose product sets the rate to compare with."""


RELEASED = Size(
    {"3.6B": STAGE_C_3_6B, "1B": STAGE_C_1B},
    {"1.5B": STAGE_B_1_5B, "700M": STAGE_B_700M},
    STAGE_A,
    1024,
    (1024, 2048, 4096),
    8192,
)
SMALL = Size({"small": SMALL_C}, {"small": SMALL_B}, SMALL_A, 128, (128,), 256)


def sides(kind: str, size: Size) -> int:
    """Side of a stage's latents."""
    found = latent_sizes(size.pixels, size.pixels)
    return int((found.stage_c if kind == "stage_c" else found.stage_b)[-1])


def step_rows(card: Card, size: Size, kind: str, name: str, config: Any, dtype: torch.dtype) -> Iterator[Row]:
    """A step of the library in each form, and of the others."""
    side, flop = sides(kind, size), step_flop(kind, config, sides(kind, size))
    stage = kind.replace("_", " ").title()
    title = f"{stage} {name}, guided step"
    cls = KINDS[kind][0]

    def plain(dtype: torch.dtype) -> Build:
        return lambda: step_of(network(cls, config, card.device, dtype), kind, side, card.device, dtype)

    def compiled() -> Callable[[], object]:
        net = network(cls, config, card.device, dtype)
        step, denoise = step_of(net, kind, side, card.device, dtype), torch.compile(net.denoise)
        return lambda: step(denoise)

    def cached() -> Callable[[], object]:
        net = network(cls, config, card.device, dtype)
        plan = plan_of(kind, size, 1, net.config, RELEASED_RUN.of(kind), CACHES[kind])
        return lambda: (sample_stage_c if kind == "stage_c" else sample_stage_b)(net, plan)

    yield Row(f"{title}, {short(dtype)}", "ours", plain(dtype), 1, flop)
    yield Row(f"{title}, {short(dtype)}", "ours, compiled", compiled, 1, flop)
    if dtype != torch.float16:
        yield Row(f"{title}, float16", "ours", plain(torch.float16), 1, flop)
    steps = RELEASED_RUN.of(kind).steps
    yield Row(f"{title}, {short(dtype)}", "ours, cached (mean of a run)", cached, steps)
    yield Row(f"{title}, {short(dtype)}", "diffusers", lambda: diffusers_step(card, kind, config, side, dtype), 1, flop)
    for label, weights, sides_of in (
        ("", None, (OURS, THEIRS)),
        (", fp8 weights", in_host.FP8, (OURS, THEIRS)),
        (", fp8_scaled file", in_host.SCALED, (OURS,)),
    ):
        for who in sides_of:
            build = in_host.step(card, kind, config, side, dtype, who, weights)
            yield Row(f"{title}, {short(dtype)}{label}", who, build, in_host.STEPS, flop)


def plan_of(
    kind: str, size: Size, batch: int, config: Any, settings: SamplingSettings, cache: Cache | None
) -> StagePlan[Any]:
    """A whole run of a stage."""
    settings = replace(settings, cache=cache)
    sizes, seeds = latent_sizes(size.pixels, size.pixels), list(range(batch))
    if kind == "stage_c":
        text, nothing = (
            TextEmbedding(torch.randn(rows, 77, config.clip_text), torch.randn(rows, 1, config.clip_text_pooled))
            for rows in (batch, 1)
        )
        cond: Any = StageCInputs.without_image(text, config.clip_img)
        uncond = cond.unconditional(nothing)
        return StagePlan(stage="stage_c", size=sizes.stage_c, seeds=seeds, settings=settings, cond=cond, uncond=uncond)
    cond = StageBInputs(torch.randn(batch, *sizes.stage_c), torch.randn(batch, 1, config.clip))
    nothing = TextEmbedding(torch.randn(1, 1, 8), torch.randn(1, 1, config.clip))
    uncond = cond.unconditional(nothing)
    return StagePlan(stage="stage_b", size=sizes.stage_b, seeds=seeds, settings=settings, cond=cond, uncond=uncond)


def diffusers_step(card: Card, kind: str, config: Any, side: int, dtype: torch.dtype) -> Callable[[], object]:
    """The same step of diffusers' module, with its own random weights."""
    from diffusers import StableCascadeUNet
    from networks import diffusers_config

    kwargs = diffusers_config(config)
    if kind == "stage_c":
        kwargs |= {"clip_text_in_channels": config.clip_text, "clip_image_in_channels": config.clip_img}
        kwargs |= {"switch_level": list(config.switch_level)}
    else:
        kwargs |= {"effnet_in_channels": config.effnet, "pixel_mapper_in_channels": config.pixels}
    net = network(lambda kwargs: StableCascadeUNet(**kwargs), kwargs, card.device, dtype)
    x, given = KINDS[kind][1](config, 2, side, card.device, dtype)
    r = torch.full((2,), 0.5, device=card.device, dtype=dtype)
    names = ("clip_text", "clip_text_pooled", "clip_img") if kind == "stage_c" else ("effnet", "clip_text_pooled")
    return lambda: net(x, r, **dict(zip(names, given, strict=True))).sample


def decode_rows(card: Card, size: Size, dtype: torch.dtype) -> Iterator[Row]:
    for pixels in size.decoded:
        side = pixels // 4
        title, flop = f"Stage A, decoding {pixels}, {short(dtype)}", decode_flop(size.stage_a, pixels)

        def build(side: int = side) -> Callable[[], object]:
            net = network(StageA, size.stage_a, card.device, dtype)
            latents = torch.randn(1, 4, side, side, device=card.device, dtype=dtype)
            return lambda: net.decode(latents)

        yield Row(title, "ours", build, 1, flop)
        for who in (OURS, THEIRS):
            yield Row(title, who, in_host.decoding(card, size.stage_a, side, dtype, who), 1, flop)


def image_rows(card: Card, size: Size, dtype: torch.dtype) -> Iterator[Row]:
    """All of an image but the text encoder."""
    (name_c, config_c), (name_b, config_b) = next(iter(size.stage_c.items())), next(iter(size.stage_b.items()))
    configs = {"stage_c": config_c, "stage_b": config_b, "stage_a": size.stage_a}

    def build(batch: int, preset: Preset, caches: dict[str, Cache]) -> Callable[[], object]:
        stage_c, stage_b, stage_a = (
            network(cls, config, card.device, dtype)
            for cls, config in zip((StageC, StageB, StageA), configs.values(), strict=True)
        )
        plan_c, plan_b = (
            plan_of(kind, size, batch, configs[kind], preset.of(kind), caches.get(kind)) for kind in KINDS
        )

        def run() -> Tensor:
            sample_stage_c(stage_c, plan_c)
            return decode(stage_a, sample_stage_b(stage_b, plan_b))

        return run

    for batch in (1, 4):
        title = f"image {size.pixels}, {name_c} and {name_b}, batch {batch}, {short(dtype)}"
        for name, preset in PRESETS.items():
            yield Row(title, f"ours, {name}", partial(build, batch, preset, {}))
        yield Row(title, "ours, cached", partial(build, batch, RELEASED_RUN, CACHES))
        for who in (OURS, THEIRS) if batch == 1 else ():
            yield Row(title, who, in_host.image(card, configs, size.pixels, dtype, who, RELEASED_RUN))


def other_rows(card: Card, size: Size, dtype: torch.dtype) -> Iterator[Row]:
    """Loading, LoRA, ControlNet, and a training step."""
    side = sides("stage_c", size)
    for name, config in reversed(size.stage_c.items()):

        def lora(config: Any = config) -> Callable[[], object]:
            net, adapter = network(StageC, config, card.device, dtype), Adapter()
            wiring = Wiring(adapter)
            wiring.add_changes(net, "stage_c", ["attention"], rank=16, alpha=16, seed=0, **PLAIN)
            wiring.on = False
            attach([Applied(adapter.to_lora({}))], stage_c=net)
            return step_of(net, "stage_c", side, card.device, dtype)

        def control(config: Any = config) -> Callable[[], object]:
            net, blocks = network(StageC, config, card.device, dtype), 2 * sum(level.depth for level in config.levels)
            places = tuple(sorted({0, blocks // 4, blocks // 2, blocks - 1}))
            made = ControlNetConfig(in_channels=1, width=config.levels[0].width, blocks=places)
            hint = torch.rand(2, 1, 32 * side, 32 * side, device=card.device, dtype=dtype)
            residuals = network(ControlNet, made, card.device, dtype)(hint)
            return step_of(net, "stage_c", side, card.device, dtype, control=residuals)

        def train(config: Any = config) -> Callable[[], object]:
            net, adapter = network(StageC, config, card.device, dtype), Adapter()
            Wiring(adapter).add_changes(net, "stage_c", ["attention"], rank=16, alpha=16, seed=0, **PLAIN)
            optimizer = torch.optim.AdamW(adapter.parameters())
            x, given = arguments_c(config, 1, side, card.device, dtype)
            r = torch.full((1,), 0.5, device=card.device)

            def run() -> None:
                with torch.enable_grad(), torch.autocast(card.device.type, dtype=torch.bfloat16):
                    loss = net(x, r, *given).float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            return run

        flop = step_flop("stage_c", config, side)
        for who in ("ours", OURS, THEIRS):
            build = in_host.loading(card, config, dtype, who)
            yield Row(f"Stage C {name}, loading from the page cache, {short(dtype)}", who, build)
        yield Row(f"Stage C {name}, guided step with a LoRA, {short(dtype)}", "ours", lora, 1, flop)
        yield Row(f"Stage C {name}, guided step with a ControlNet, {short(dtype)}", "ours", control, 1, flop)
        yield Row(f"Stage C {name}, training step of a LoRA, batch 1, {short(dtype)}", "ours", train)


PLAIN: dict[str, Any] = {"dropout": 0.0, "dora": False}


def rows(card: Card, size: Size, dtype: torch.dtype) -> Iterator[Row]:
    """The most important first: the last may not be reached in time."""
    for kind, configs in (("stage_c", size.stage_c), ("stage_b", size.stage_b)):
        for name, config in configs.items():
            yield from step_rows(card, size, kind, name, config, dtype)
    yield from decode_rows(card, size, dtype)
    yield from image_rows(card, size, dtype)
    yield from other_rows(card, size, dtype)


def page(card: Card, size: Size, dtype: torch.dtype) -> str:
    """The whole page in Markdown."""
    name = torch.cuda.get_device_name() if card.device.type == "cuda" else "no graphics card"
    rate = card.rate(dtype)
    lines = []
    for row in rows(card, size, dtype):
        lines.append(line(card, row, dtype))
        print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    heading = "# On a graphics card\n\n" if size is RELEASED else "# A trial with small networks, not a measurement\n\n"
    about = (
        f"{name}; {machine()}; a matrix product of {size.product} x {size.product} in {short(dtype)} reaches "
        f"{rate / 1e12:.2f} TFLOP/s. Random weights; mean of {card.repeats} calls after a first one.\n\n"
    )
    return f"{heading}{about}{table(HEAD, lines)}\n\n```bash\npython benchmarks/gpu.py -o docs/gpu.md\n```\n"


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="page to write; default: standard output")
    parser.add_argument("--small", action="store_true", help="small networks: a trial of the script")
    parser.add_argument("--device", help="default: cuda; with --small cpu")
    parser.add_argument("--repeats", type=int, default=3, help="calls of each row")
    parser.add_argument("--seconds", type=float, default=450, help="after this no further row begins")
    options = parser.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        parser.error("there is no graphics card; --small tries the script on a CPU")
    device = torch.device(options.device or ("cpu" if options.small else "cuda"))
    size = SMALL if options.small else RELEASED
    card = Card(device, options.repeats, time.monotonic() + options.seconds, size.product)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    # ComfyUI and the compiler write to standard output.
    with contextlib.redirect_stdout(sys.stderr):
        text = page(card, size, dtype)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
