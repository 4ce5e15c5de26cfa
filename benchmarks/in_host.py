"""ComfyUI's part of the suite for a graphics card: networks with random weights, loaded and run in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from card import Build, Card, NotHere
from common import SMALL_B, SMALL_C
from steps import KINDS, network
from torch import Tensor

from cascade.checkpoints import convert, load_model, save_model
from cascade.models import StageA, StageC
from cascade.pipelines.presets import Preset

OURS, THEIRS = "ours in ComfyUI", "ComfyUI"
STEPS = 5
"""Of a run in ComfyUI of which one step is shown."""
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
FP8, SCALED = "fp8_e4m3fn", "fp8_scaled"
"""Weights stored in float8: by the loader, and in a file that `convert --quantize` wrote."""


@cache
def booted(device: str) -> Any:
    """ComfyUI on the card. Raises NotHere."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        raise NotHere("COMFYUI_PATH does not say where ComfyUI lies")
    from tests.nodes.hosting import boot

    return boot(path, cpu=device == "cpu")


@contextmanager
def written(card: Card, cls: Any, config: Any, dtype: torch.dtype, weights: str | None = None) -> Iterator[Path]:
    """The file of a network with random weights."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "network.safetensors"
        save_model(network(cls, config, card.device, dtype), path)
        if weights == SCALED:
            plain, path = path, Path(folder) / "quantized.safetensors"
            convert(plain, path, dtype=dtype, quantize=SCALED)
        card.clean()
        yield path


def stage(card: Card, kind: str, config: Any, dtype: torch.dtype, who: str, weights: str | None = None) -> Any:
    """The MODEL of a stage, from our loader or from ComfyUI's."""
    host = booted(card.device.type)
    import comfy.sd
    from host import native_model

    with written(card, KINDS[kind][0], config, dtype, weights) as path:
        if who == OURS:
            named = "default" if weights == SCALED else weights or NAMES[dtype]
            return host.pack("nodes.host.models").load_stage(kind, path, named)
        if config in (SMALL_B, SMALL_C):
            return native_model(path, kind, small=True)
        stored = dtype if weights is None else torch.float8_e4m3fn
        return comfy.sd.load_diffusion_model(str(path), model_options={"dtype": stored})


def stage_a(card: Card, config: Any, dtype: torch.dtype, who: str) -> Any:
    """The VAE of Stage A, from our loader or from ComfyUI's."""
    host = booted(card.device.type)
    import comfy.sd
    from comfy.utils import load_torch_file

    with written(card, StageA, config, dtype) as path:
        if who == OURS:
            return host.pack("nodes.host.autoencoders").load_stage_a(path, NAMES[dtype])
        return comfy.sd.VAE(sd=load_torch_file(str(path)))


def step(card: Card, kind: str, config: Any, side: int, dtype: torch.dtype, who: str, weights: str | None) -> Build:
    """A run of `STEPS` steps through ComfyUI's sampler."""

    def build() -> Callable[[], object]:
        model = stage(card, kind, config, dtype, who, weights)
        import comfy.sample
        from host import conditioning

        latent = torch.zeros(1, config.latent_channels, side, side)
        prior = {"stable_cascade_prior": torch.randn(1, 16, 6, 6)} if kind == "stage_b" else {}
        conds = conditioning(1, **prior), conditioning(2)

        def run() -> Tensor:
            with torch.inference_mode():
                return comfy.sample.sample(
                    model, latent, STEPS, 4.0, "ddpm", "simple", *conds, latent, disable_pbar=True, seed=1
                )

        return run

    return build


def decoding(card: Card, config: Any, side: int, dtype: torch.dtype, who: str) -> Build:
    """Stage A's decoding of latents of this side."""

    def build() -> Callable[[], object]:
        vae, latents = stage_a(card, config, dtype, who), torch.randn(1, 4, side, side)
        return lambda: vae.decode(latents)

    return build


def image(card: Card, configs: dict[str, Any], pixels: int, dtype: torch.dtype, who: str, preset: Preset) -> Build:
    """A whole image, of one encoded prompt."""

    def build() -> Callable[[], object]:
        from text_to_image import our_image, their_image

        models = {kind: stage(card, kind, configs[kind], dtype, who) for kind in KINDS}
        models["stage_a"] = stage_a(card, configs["stage_a"], dtype, who)
        made, host = our_image if who == OURS else their_image, booted(card.device.type)
        return lambda: made(host, models, pixels, preset)

    return build


def loading(card: Card, config: Any, dtype: torch.dtype, who: str) -> Build:
    """A Stage C, from the page cache to the card; "ours" is the library."""

    def build() -> Callable[[], object]:
        host = None if who == "ours" else booted(card.device.type)
        kept = written(card, StageC, config, dtype)
        path = kept.__enter__()

        def run() -> object:
            assert kept  # the file is there as long as this function
            if host is None:
                return load_model(path, dtype=dtype, device=card.device)
            import comfy.model_management
            import comfy.sd

            if who == OURS:
                model = host.pack("nodes.host.models").load_stage("stage_c", path, NAMES[dtype])
            else:
                model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
            comfy.model_management.load_models_gpu([model])
            return model

        return run

    return build
