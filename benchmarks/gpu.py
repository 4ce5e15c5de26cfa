"""Everything that takes time on a graphics card, of this project, ComfyUI and diffusers: one page, random weights.

    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/gpu.py -o docs/gpu.md    # below 8 minutes on one card
    python benchmarks/gpu.py --small                                      # a trial of the script in a minute, on a CPU

Nothing is downloaded. A side that is not installed, a row that does not fit into the card's memory and one that fails
say so in the table, and so does a row that was not reached in time. A step is a guided one, of prompt and negative
prompt as one batch of 2; in ComfyUI, one step of a run of 5. The work (TFLOP) is that of the matrix products and
convolutions of our network; a rate is compared with the one that the card reaches in a large matrix product.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from common import SMALL_B, SMALL_C, machine, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cascade.adapters import Applied, attach
from cascade.checkpoints import load_model, save_model
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
    StageAConfig,
    StageB,
    StageC,
)
from cascade.pipelines import STAGE_B_SETTINGS, STAGE_C_SETTINGS, StagePlan, latent_sizes
from cascade.pipelines.stages import decode, sample_stage_b, sample_stage_c
from cascade.training.lora_layers import Adapter, Wiring

HEAD = ["", "side", "time", "peak memory", "TFLOP/s", "of the matrix product's rate"]
STEPS = 5
"""Of a run in ComfyUI of which one step is shown."""
CACHES = {"stage_c": Cache(inner_every=2, cfg_every=2, start_percent=0.2), "stage_b": Cache(cfg_every=10)}
HOST_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SMALL_A = StageAConfig(width=32, bottleneck_blocks=1, codebook_size=16)


class NotHere(Exception):
    """A side that this machine does not have."""


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

Build = Callable[[], Callable[[], object]]
"""Makes the networks, and returns what is timed."""


@dataclass
class Row:
    """A line of the table. `unit`: how many of what the title says are in one call; `flop` of one."""

    title: str
    side: str
    build: Build
    unit: int = 1
    flop: float = 0.0


@dataclass
class Card:
    """The device, and how to measure on it."""

    device: torch.device
    repeats: int
    until: float
    rates: dict[torch.dtype, float] = field(default_factory=dict)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        for _ in range(self.repeats):
            run()
        self.wait()
        return (time.perf_counter() - start) / self.repeats

    def peak(self) -> str:
        if self.device.type != "cuda":
            return ""
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"

    def clean(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def rate(self, dtype: torch.dtype, side: int) -> float:
        """FLOP a second of a matrix product of this side."""
        if dtype not in self.rates:
            a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            a @ b
            self.rates[dtype] = 2 * side**3 / self.seconds(lambda: a @ b)
        return self.rates[dtype]


def line(card: Card, row: Row, size: Size, dtype: torch.dtype) -> list[str]:
    """A row, measured, or why it was not."""
    if time.monotonic() > card.until:
        return [row.title, row.side, "not reached in time", "", "", ""]
    card.clean()
    try:
        run = row.build()
        run()
        seconds = card.seconds(run) / row.unit
        cells = [f"{1000 * seconds:.1f} ms", card.peak()]
        if row.flop:
            rate = row.flop / seconds
            return [row.title, row.side, *cells, f"{rate / 1e12:.2f}", f"{rate / card.rate(dtype, size.product):.0%}"]
        return [row.title, row.side, *cells, "", ""]
    except (torch.OutOfMemoryError, MemoryError):
        return [row.title, row.side, "out of memory", "", "", ""]
    except (NotHere, ImportError) as error:
        return [row.title, row.side, f"not here: {_first_line(error)}", "", "", ""]
    except Exception as error:  # noqa: BLE001  one row must not end the others
        return [row.title, row.side, f"failed: {type(error).__name__}: {_first_line(error)}", "", "", ""]
    finally:
        run = None
        card.clean()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].replace("|", "/")[:100]


def network(cls: Any, config: Any, card: Card, dtype: torch.dtype) -> Any:
    """A network with random weights that keep a signal's size, made on the card."""
    with torch.device("meta"):
        net: nn.Module = cls(config).to(dtype)
    net.to_empty(device=card.device)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.dim() > 1 and tensor[..., 0].numel() > 1 else 100
            tensor.normal_(std=fan_in**-0.5)
    return net.eval().requires_grad_(False)


def arguments_c(config: Any, batch: int, side: int, device: Any, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Latents and embeddings of Stage C."""
    shapes = [(77, config.clip_text), (1, config.clip_text_pooled), (1, config.clip_img)]
    embeddings = [torch.randn(batch, *shape, device=device, dtype=dtype) for shape in shapes]
    return torch.randn(batch, 16, side, side, device=device, dtype=dtype), embeddings


def arguments_b(config: Any, batch: int, side: int, device: Any, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Latents, and the conditions of Stage B."""
    small = -(-side * 3 // 32)
    effnet = torch.randn(batch, config.effnet, small, small, device=device, dtype=dtype)
    clip = torch.randn(batch, 1, config.clip, device=device, dtype=dtype)
    return torch.randn(batch, 4, side, side, device=device, dtype=dtype), [effnet, clip]


KINDS = {"stage_c": (StageC, arguments_c), "stage_b": (StageB, arguments_b)}


def step_of(net: Any, kind: str, side: int, device: Any, dtype: torch.dtype, **control: Any) -> Callable[..., Tensor]:
    """A guided step; a function to use instead of `denoise` may be given."""
    x, given = KINDS[kind][1](net.config, 2, side, device, dtype)
    size = {"size": x.shape[-2:]} if kind == "stage_b" else {}
    conditions = net.conditions(*given, **size)
    r = torch.full((2,), 0.5, device=device)

    def step(denoise: Callable[..., Tensor] | None = None) -> Tensor:
        return (denoise or net.denoise)(x, r, conditions, **control)

    return step


@cache
def step_flop(kind: str, config: Any, side: int) -> float:
    """The work of a guided step, counted without computing it."""
    with torch.device("meta"):
        net = KINDS[kind][0](config)
        step = step_of(net, kind, side, "meta", torch.float32)
        with FlopCounterMode(display=False) as counter:
            step()
    return float(counter.get_total_flops())


def decode_flop(config: Any, side: int) -> float:
    with torch.device("meta"):
        net, latents = StageA(config), torch.randn(1, 4, side // 4, side // 4)
        with FlopCounterMode(display=False) as counter:
            net.decode(latents)
    return float(counter.get_total_flops())


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
        return lambda: step_of(network(cls, config, card, dtype), kind, side, card.device, dtype)

    def compiled() -> Callable[[], object]:
        net = network(cls, config, card, dtype)
        step, denoise = step_of(net, kind, side, card.device, dtype), torch.compile(net.denoise)
        return lambda: step(denoise)

    def cached() -> Callable[[], object]:
        net = network(cls, config, card, dtype)
        plan = plan_of(kind, size, 1, net.config, CACHES[kind])
        return lambda: (sample_stage_c if kind == "stage_c" else sample_stage_b)(net, plan)

    yield Row(f"{title}, {short(dtype)}", "ours", plain(dtype), 1, flop)
    yield Row(f"{title}, {short(dtype)}", "ours, compiled", compiled, 1, flop)
    if dtype != torch.float16:
        yield Row(f"{title}, float16", "ours", plain(torch.float16), 1, flop)
    settings = STAGE_C_SETTINGS if kind == "stage_c" else STAGE_B_SETTINGS
    yield Row(f"{title}, {short(dtype)}", "ours, cached (mean of a run)", cached, settings.steps)
    yield Row(f"{title}, {short(dtype)}", "diffusers", lambda: diffusers_step(card, kind, config, side, dtype), 1, flop)
    for label, weights in (("", None), (", fp8 weights", "fp8_e4m3fn")):
        for who in ("ours in ComfyUI", "ComfyUI"):
            build = host_step(card, kind, config, side, dtype, who, weights)
            yield Row(f"{title}, {short(dtype)}{label}", who, build, STEPS, flop)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def plan_of(kind: str, size: Size, batch: int, config: Any, cache: Cache | None) -> StagePlan[Any]:
    """A whole run with the released settings."""
    released: SamplingSettings = STAGE_C_SETTINGS if kind == "stage_c" else STAGE_B_SETTINGS
    settings = SamplingSettings(steps=released.steps, guidance=released.guidance, shift=released.shift, cache=cache)
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
    net = network(lambda kwargs: StableCascadeUNet(**kwargs), kwargs, card, dtype)
    x, given = KINDS[kind][1](config, 2, side, card.device, dtype)
    r = torch.full((2,), 0.5, device=card.device, dtype=dtype)
    names = ("clip_text", "clip_text_pooled", "clip_img") if kind == "stage_c" else ("effnet", "clip_text_pooled")
    return lambda: net(x, r, **dict(zip(names, given, strict=True))).sample


@cache
def booted(device: str) -> Any:
    """ComfyUI on the card. Raises NotHere."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        raise NotHere("COMFYUI_PATH does not say where ComfyUI lies")
    from tests.nodes.hosting import boot

    return boot(path, cpu=device == "cpu")


def host_step(
    card: Card, kind: str, config: Any, side: int, dtype: torch.dtype, who: str, weights: str | None
) -> Build:
    """A run of `STEPS` steps through ComfyUI's sampler, with our loader or its own."""

    def build() -> Callable[[], object]:
        host = booted(card.device.type)
        import comfy.sample
        import comfy.sd
        from host import conditioning, native_model

        small = config in (SMALL_B, SMALL_C)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / f"{kind}.safetensors"
            save_model(network(KINDS[kind][0], config, card, dtype), path)
            card.clean()
            if who != "ComfyUI":
                model = host.pack("nodes.host.models").load_stage(kind, path, weights or HOST_NAMES[dtype])
            elif small:
                model = native_model(path, kind, small)
            else:
                stored = dtype if weights is None else torch.float8_e4m3fn
                model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": stored})
            latent = torch.zeros(1, 16 if kind == "stage_c" else 4, side, side)
            prior = {"stable_cascade_prior": torch.randn(1, 16, 6, 6)} if kind == "stage_b" else {}
            conds = conditioning(1, **prior), conditioning(2)

            def run() -> Tensor:
                with torch.inference_mode():
                    return comfy.sample.sample(
                        model, latent, STEPS, 4.0, "ddpm", "simple", *conds, latent, disable_pbar=True, seed=1
                    )

            run()
        return run

    return build


def decode_rows(card: Card, size: Size, dtype: torch.dtype) -> Iterator[Row]:
    for pixels in size.decoded:
        side = pixels // 4
        title, flop = f"Stage A, decoding {pixels}, {short(dtype)}", decode_flop(size.stage_a, pixels)

        def build(side: int = side) -> Callable[[], object]:
            net = network(StageA, size.stage_a, card, dtype)
            latents = torch.randn(1, 4, side, side, device=card.device, dtype=dtype)
            return lambda: net.decode(latents)

        def in_host(who: str, side: int = side) -> Callable[[], object]:
            host = booted(card.device.type)
            import comfy.sd
            from comfy.utils import load_torch_file

            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                path = Path(folder) / "stage_a.safetensors"
                save_model(network(StageA, size.stage_a, card, dtype), path)
                if who == "ComfyUI":
                    vae = comfy.sd.VAE(sd=load_torch_file(str(path)))
                else:
                    vae = host.pack("nodes.host.autoencoders").load_stage_a(path, HOST_NAMES[dtype])
                latents = torch.randn(1, 4, side, side)
                vae.decode(latents)
            return lambda: vae.decode(latents)

        yield Row(title, "ours", build, 1, flop)
        for who in ("ours in ComfyUI", "ComfyUI"):
            yield Row(title, who, partial(in_host, who), 1, flop)


def image_rows(card: Card, size: Size, dtype: torch.dtype) -> Iterator[Row]:
    """All of an image but the text encoder."""
    names = list(zip(size.stage_c, size.stage_b, strict=True))
    for name_c, name_b in names[:1]:
        for batch in (1, 4):
            for side, caches in (("ours", {}), ("ours, cached", CACHES)):

                def build(batch: int = batch, caches: Any = caches, c: str = name_c, b: str = name_b) -> Any:
                    stage_c = network(StageC, size.stage_c[c], card, dtype)
                    stage_b = network(StageB, size.stage_b[b], card, dtype)
                    stage_a = network(StageA, size.stage_a, card, dtype)
                    plan_c = plan_of("stage_c", size, batch, stage_c.config, caches.get("stage_c"))
                    plan_b = plan_of("stage_b", size, batch, stage_b.config, caches.get("stage_b"))

                    def run() -> Tensor:
                        sample_stage_c(stage_c, plan_c)
                        return decode(stage_a, sample_stage_b(stage_b, plan_b))

                    return run

                title = f"image {size.pixels}, {name_c} and {name_b}, 20 and 10 steps, batch {batch}, {short(dtype)}"
                yield Row(title, side, build)


def other_rows(card: Card, size: Size, dtype: torch.dtype) -> Iterator[Row]:
    """Loading, LoRA, ControlNet, and a training step."""
    side = sides("stage_c", size)
    for name, config in reversed(size.stage_c.items()):

        def load(who: str, config: Any = config) -> Callable[[], object]:
            host = None if who == "ours" else booted(card.device.type)
            folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            path = Path(folder.name) / "stage_c.safetensors"
            save_model(network(StageC, config, card, dtype), path)

            def run() -> object:
                assert folder.name  # it is there as long as this function
                if host is None:
                    return load_model(path, dtype=dtype, device=card.device)
                import comfy.model_management
                import comfy.sd

                if who == "ComfyUI":
                    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
                else:
                    model = host.pack("nodes.host.models").load_stage("stage_c", path, HOST_NAMES[dtype])
                comfy.model_management.load_models_gpu([model])
                return model

            return run

        def lora(config: Any = config) -> Callable[[], object]:
            net, adapter = network(StageC, config, card, dtype), Adapter()
            wiring = Wiring(adapter)
            wiring.add_changes(net, "stage_c", ["attention"], rank=16, alpha=16, seed=0, **PLAIN)
            wiring.on = False
            attach([Applied(adapter.to_lora({}))], stage_c=net)
            return step_of(net, "stage_c", side, card.device, dtype)

        def control(config: Any = config) -> Callable[[], object]:
            net, blocks = network(StageC, config, card, dtype), 2 * sum(level.depth for level in config.levels)
            places = tuple(sorted({0, blocks // 4, blocks // 2, blocks - 1}))
            made = ControlNetConfig(in_channels=1, width=config.levels[0].width, blocks=places)
            hint = torch.rand(2, 1, 32 * side, 32 * side, device=card.device, dtype=dtype)
            residuals = network(ControlNet, made, card, dtype)(hint)
            return step_of(net, "stage_c", side, card.device, dtype, control=residuals)

        def train(config: Any = config) -> Callable[[], object]:
            net, adapter = network(StageC, config, card, dtype), Adapter()
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
        for who in ("ours", "ours in ComfyUI", "ComfyUI"):
            yield Row(f"Stage C {name}, loading from the page cache, {short(dtype)}", who, partial(load, who))
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
    rate = card.rate(dtype, size.product)
    lines = []
    for row in rows(card, size, dtype):
        lines.append(line(card, row, size, dtype))
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
    card = Card(device, options.repeats, time.monotonic() + options.seconds)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    # ComfyUI and the compiler write to standard output.
    with contextlib.redirect_stdout(sys.stderr):
        text = page(card, SMALL if options.small else RELEASED, dtype)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
