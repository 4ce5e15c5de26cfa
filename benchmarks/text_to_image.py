"""From an encoded prompt to pixels in ComfyUI, with its own nodes and with ours: exact, cached, and with fewer steps.

    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/text_to_image.py           # about 10 minutes, 10 GB of memory
    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/text_to_image.py --small   # a trial of the script in a minute

Stage C 1B, Stage B 700M and Stage A with random weights in bfloat16, one image of 256 x 256 pixels; Stage C's and Stage
B's loading too. All take turns in one process. That the exact images agree is measured by host.py. Times are those of
the processor, so that other work on the machine counts less. The text encoder is left out: it is ComfyUI's on both
sides. turbo is its steps without its LoRAs, which ComfyUI merges into the weights before the first step. What is
cached: `IN_BOTH` of caches.py.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from caches import IN_BOTH
from common import arguments, interleaved, machine, print_table
from host import OPTIONS, conditioning, native_model, write_networks
from torch import Tensor

from cascade.pipelines import PRESETS, latent_sizes
from cascade.pipelines.presets import FAST, RELEASED, TURBO, Preset
from tests.nodes.hosting import Host, boot

DTYPE, NAME = torch.bfloat16, "bf16"
Models = dict[str, Any]


def our_image(host: Host, models: Models, pixels: int, preset: Preset) -> Tensor:
    """With our nodes."""
    sizes, conds = latent_sizes(pixels, pixels), {"positive": conditioning(1), "negative": conditioning(2)}
    options, latent = host.call("CascadeSamplingOptions", **OPTIONS)[0], {"samples": torch.zeros(1, *sizes.stage_c)}
    for kind, given in (("stage_c", "latent_image"), ("stage_b", "stage_c")):
        settings = preset.of(kind)
        [latent] = host.call(
            f"CascadeSample{kind.title().replace('_', '')}",
            **{"model": models[kind], given: latent, "seed": 1, "denoise": 1.0, "options": options, **conds},
            **{"steps": settings.steps, "cfg": settings.guidance.cfg, "sampler_name": settings.sampler_name},
            shift=settings.shift,
        )
    return host.call("CascadeDecode", samples=latent, vae=models["stage_a"], tiling="never", tile_size=1024)[0]


def their_image(host: Host, models: Models, pixels: int, preset: Preset) -> Tensor:
    """With ComfyUI's own nodes."""
    sizes, sample = latent_sizes(pixels, pixels), host.classes["KSampler"]().sample
    positive, negative = conditioning(1), conditioning(2)
    latent: Any = {"samples": torch.zeros(1, *sizes.stage_c)}
    with torch.inference_mode():
        for kind, size in (("stage_c", sizes.stage_c), ("stage_b", sizes.stage_b)):
            if kind == "stage_b":
                positive = conditioning(1, stable_cascade_prior=latent["samples"])
                latent = {"samples": torch.zeros(1, *size)}
            settings = preset.of(kind)
            chosen = settings.steps, settings.guidance.cfg, settings.sampler_name, "simple"
            [latent] = sample(models[kind], 1, *chosen, positive, negative, latent)
        return models["stage_a"].decode(latent["samples"])


def loads(host: Host, paths: dict[str, Path], kind: str, small: bool) -> dict[str, Callable[[], Any]]:
    """Who -> loading of a stage."""
    return {
        "ComfyUI": lambda: native_model(paths[kind], kind, small, DTYPE),
        "ours": lambda: host.pack("nodes.host.models").load_stage(kind, paths[kind], NAME),
    }


def ways(host: Host, paths: dict[str, Path], small: bool) -> dict[str, Callable[[], Tensor]]:
    """Name -> the run of a whole image."""
    import comfy.sd
    from comfy.utils import load_torch_file

    pixels, exact = 256, PRESETS[RELEASED]
    stages = {kind: loads(host, paths, kind, small) for kind in ("stage_c", "stage_b")}
    ours, theirs = ({kind: load[side]() for kind, load in stages.items()} for side in ("ours", "ComfyUI"))
    ours["stage_a"] = host.pack("nodes.host.autoencoders").load_stage_a(paths["stage_a"], NAME)
    # The host knows Stage A of the released size alone.
    theirs["stage_a"] = (
        ours["stage_a"] if small else comfy.sd.VAE(sd=load_torch_file(str(paths["stage_a"])), dtype=DTYPE)
    )
    cached = host.pack("nodes.host.caching").cached
    made = host.pack("cascade.diffusion").Cache
    found = {
        "ComfyUI's own nodes": partial(their_image, host, theirs, pixels, exact),
        "ours, exact": partial(our_image, host, ours, pixels, exact),
    }
    for name, way in IN_BOTH.items():
        both = {kind: cached(ours[kind], made(**asdict(getattr(way, kind)))) for kind in stages}
        found[f"ours, {name}"] = partial(our_image, host, {**ours, **both}, pixels, exact)
    for name in (FAST, TURBO):
        found[f"ours, {name}"] = partial(our_image, host, ours, pixels, PRESETS[name])
    return found


def main() -> None:
    options = arguments(__doc__ or "", repeats=3)
    host = boot(os.environ["COMFYUI_PATH"])
    rows = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        paths = write_networks(Path(folder), options.small, DTYPE)
        for kind, title in (("stage_c", "Stage C"), ("stage_b", "Stage B")):
            seconds = interleaved(loads(host, paths, kind, options.small), options.repeats, time.process_time)
            for who, value in seconds.items():
                rows.append([f"loading {title}, {who}", f"{value:.2f} s", f"{value / seconds['ComfyUI']:.2f}"])
        seconds = interleaved(ways(host, paths, options.small), options.repeats, time.process_time)
    first = next(iter(seconds.values()))
    rows += [[name, f"{value:.2f} s", f"{value / first:.2f}"] for name, value in seconds.items()]
    print(f"ComfyUI {host.version}, {machine()}; median of {options.repeats} runs of each\n")
    print_table(["", "processor time", "ratio"], rows)


if __name__ == "__main__":
    main()
