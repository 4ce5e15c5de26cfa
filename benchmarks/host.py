"""Our nodes against ComfyUI's own on this machine: same weights, same conditionings, both sides taking turns.

    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/host.py           # about 20 minutes on two cores, 14 GB of memory
    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/host.py --small   # a trial of the script in a minute

Whole sampling runs through the host's own sampler, so that a step holds all that the host does around the network.
Rows: a guided step of Stage C (1B, 24 x 24) and of Stage B (700M, 64 x 64), in a run of one step, where nothing can be
kept from the one before, and in a run of five; a Stage A decode (1024 x 1024), and the overhead of our sampling node
with a network that takes no time. float32; outputs must agree to 1e-4, or the script fails. Memory is
the growth of the resident set at its peak, loading and two steps, in a process of its own for each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from common import (
    SMALL_A,
    SMALL_B,
    SMALL_C,
    arguments,
    difference,
    interleaved,
    machine,
    print_table,
    with_random_weights,
)
from load_once import resident
from torch import Tensor

from cascade.checkpoints import save_model
from cascade.models import STAGE_A, STAGE_B_700M, STAGE_C_1B, StageA, StageB, StageC
from tests.nodes.hosting import Host, boot

AGREE = 1e-4
STEPS = 5
STAGES = {"stage_c": ("Stage C 1B", 24), "stage_b": ("Stage B 700M", 64)}
"""kind -> (title, side of the latent)."""
HEAD = ["", "ComfyUI", "ours", "ratio", "error"]
ONCE = "CASCADE_ONCE"
OPTIONS = {
    "cfg_rescale": 0.0,
    "cfg_end": 0.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "rescale_scope": "per image",
    "img2img_noise_level": "matches denoise",
    "tile_size": 1024,
    "overlap": 256,
}


def write_networks(folder: Path, small: bool, dtype: torch.dtype = torch.float32) -> dict[str, Path]:
    """Files in the released layout with random weights."""
    nets = {
        "stage_c": (StageC, SMALL_C if small else STAGE_C_1B),
        "stage_b": (StageB, SMALL_B if small else STAGE_B_700M),
        "stage_a": (StageA, SMALL_A if small else STAGE_A),
        "overhead": (StageC, SMALL_C),
    }
    paths = {}
    for kind, (cls, config) in nets.items():
        with torch.device("meta"):
            net = cls(config).to(dtype)
        paths[kind] = folder / f"{kind}.safetensors"
        save_model(with_random_weights(net), paths[kind])
    return paths


def native_model(path: Path, kind: str, small: bool, dtype: torch.dtype = torch.float32) -> Any:
    """The host's own MODEL; of a small network, which it does not recognize, put together by hand."""
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    from safetensors.torch import load_file

    if not small:
        return comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
    config = SMALL_C if kind == "stage_c" else SMALL_B
    levels = config.levels
    sizes: dict[str, Any] = {
        "stable_cascade_stage": kind[-1],
        "c_cond": config.condition_channels,
        "c_hidden": [level.width for level in levels],
        "nhead": [level.heads for level in levels],
        "blocks": [[level.depth for level in levels], [level.depth for level in levels[::-1]]],
        "block_repeat": [[level.down_repeats for level in levels], [level.up_repeats for level in levels[::-1]]],
        "level_config": [level.pattern for level in levels],
    }
    sizes |= {"dropout": [0.0] * len(levels)} if kind == "stage_b" else {}
    entries = {"stage_c": comfy.supported_models.Stable_Cascade_C, "stage_b": comfy.supported_models.Stable_Cascade_B}
    made = entries[kind](sizes)
    made.set_inference_dtype(torch.float32, None)
    model = made.get_model({}, "")
    model.load_model_weights(load_file(path), "")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def our_model(host: Host, path: Path, kind: str) -> Any:
    return host.pack("nodes.host.models").load_stage(kind, path, "fp32")


def conditioning(seed: int, **extras: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, 77, 1280, generator=generator), torch.randn(1, 1280, generator=generator)
    return [[text, {"pooled_output": pooled, **extras}]]


def sample(model: Any, kind: str, steps: int = STEPS) -> Tensor:
    """The latent that the host's sampler makes with this model."""
    import comfy.sample

    side = STAGES[kind][1]
    latent = torch.zeros(1, 16 if kind == "stage_c" else 4, side, side)
    torch.manual_seed(0)
    prior = {"stable_cascade_prior": torch.randn(1, 16, 6, 6)} if kind == "stage_b" else {}
    conds = conditioning(1, **prior), conditioning(2)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, torch.randn(latent.shape), steps, 4.0, "ddpm", "simple", *conds, latent, disable_pbar=True, seed=1
        )


def compared(name: str, sides: dict[str, Callable[[], Any]], repeats: int, unit: int = 1) -> list[str]:
    """A line of the table; `unit` runs in one call."""
    theirs, ours = (run() for run in sides.values())
    error = difference(ours, theirs) if isinstance(ours, Tensor) else None
    if error is not None and error > AGREE:
        raise SystemExit(f"{name}: the outputs differ by {error:.1e}")
    seconds = interleaved(sides, repeats)
    their_time, our_time = (seconds[side] / unit for side in sides)
    shown = "" if error is None else f"{error:.0e}"
    return [name, f"{their_time:.3f} s", f"{our_time:.3f} s", f"{our_time / their_time:.2f}", shown]


def stage_rows(host: Host, kind: str, path: Path, repeats: int, small: bool) -> list[list[str]]:
    models = {"ComfyUI": native_model(path, kind, small), "ours": our_model(host, path, kind)}
    return [
        compared(
            f"{STAGES[kind][0]}, a guided step of {steps}",
            {side: partial(sample, model, kind, steps) for side, model in models.items()},
            repeats,
            steps,
        )
        for steps in (1, STEPS)
    ]


def decode_row(host: Host, path: Path, repeats: int) -> list[str]:
    import comfy.sd
    from comfy.utils import load_torch_file

    native = comfy.sd.VAE(sd=load_torch_file(str(path)))
    native.process_output = lambda image: image.clamp_(0, 1)
    vaes = {"ComfyUI": native, "ours": host.pack("nodes.host.autoencoders").load_stage_a(path, "fp32")}
    latent = torch.randn(1, 4, 256, 256) * 0.3

    def decode(vae: Any) -> Tensor:
        with torch.inference_mode():
            return vae.decode(latent)

    return compared(
        "Stage A, decoding 1024 x 1024", {side: partial(decode, vae) for side, vae in vaes.items()}, repeats
    )


def overhead_row(host: Host, path: Path, repeats: int) -> list[str]:
    """Twenty steps of a network of no size, in both sampling nodes."""
    model = our_model(host, path, "stage_c")
    conds = {"positive": conditioning(1), "negative": conditioning(2)}
    latent = {"samples": torch.zeros(1, 16, 6, 6)}
    settings = {"seed": 1, "steps": 20, "cfg": 4.0, "sampler_name": "ddpm", "denoise": 1.0, "shift": 2.0}
    settings["options"] = host.call("CascadeSamplingOptions", **OPTIONS)[0]

    def ours() -> None:
        host.call("CascadeSampleStageC", model=model, latent_image=latent, **conds, **settings)

    def theirs() -> None:
        with torch.inference_mode():
            host.classes["KSampler"]().sample(model, 1, 20, 4.0, "ddpm", "simple", latent_image=latent, **conds)

    return compared("sampling node, 20 steps of nothing", {"ComfyUI": theirs, "ours": ours}, repeats * 3)


def memory_row(kind: str, path: Path, small: bool) -> list[str]:
    """MB that loading and two steps take, in a process of its own for each side."""
    found = []
    for side in ("ComfyUI", "ours"):
        command = [sys.executable, __file__, *(["--small"] if small else [])]
        child = {**os.environ, ONCE: f"{side} {kind} {path}"}
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=child)
        found.append(float(result.stdout.splitlines()[-1]) / 1e6)
    theirs, ours = found
    return [f"{STAGES[kind][0]}, memory", f"{theirs:.0f} MB", f"{ours:.0f} MB", f"{ours / theirs:.2f}", ""]


def print_memory(side: str, kind: str, path: Path, small: bool) -> None:
    host = boot(os.environ["COMFYUI_PATH"])
    before = resident("VmRSS")
    model = native_model(path, kind, small) if side == "ComfyUI" else our_model(host, path, kind)
    sample(model, kind, 2)
    print(resident("VmHWM") - before)


def main() -> None:
    options = arguments(__doc__ or "", repeats=3)
    if ONCE in os.environ:
        side, kind, path = os.environ[ONCE].split(" ", 2)
        print_memory(side, kind, Path(path), options.small)
        return
    host = boot(os.environ["COMFYUI_PATH"])
    print(f"ComfyUI {host.version}, {machine()}\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_networks(Path(folder), options.small)
        for kind in STAGES:
            rows += stage_rows(host, kind, paths[kind], options.repeats, options.small)
        rows += [] if options.small else [decode_row(host, paths["stage_a"], options.repeats)]
        rows.append(overhead_row(host, paths["overhead"], options.repeats))
        rows += [memory_row(kind, paths[kind], options.small) for kind in STAGES]
    print_table(HEAD, rows)


if __name__ == "__main__":
    main()
