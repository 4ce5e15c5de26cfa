"""Parity with diffusers' own networks, which read the files that we convert for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cascade.checkpoints import convert, save_model
from cascade.models import Level, StageA, StageAConfig, StageB, StageBConfig, StageC, StageCConfig
from tests.support import randomised, relative_error

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")
PaellaVQModel = pytest.importorskip("diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model").PaellaVQModel

TOLERANCE = 1e-4
CONFIG_C = StageCConfig(
    condition_channels=32, clip_text=24, clip_text_pooled=24, clip_img=16, levels=(Level(32, 4, 2), Level(32, 2, 3))
)
CONFIG_B = StageBConfig(
    condition_channels=32,
    clip=24,
    levels=(Level(16, 0, 1, "CT", up_repeats=2), Level(24, 3, 2), Level(32, 4, 2, up_repeats=3)),
)


def theirs(ours: nn.Module, folder: Path, network: Any) -> nn.Module:
    save_model(ours, folder / "ours.safetensors")
    convert(folder / "ours.safetensors", folder / "diffusers", layout="diffusers")
    return network.from_pretrained(folder / "diffusers", low_cpu_mem_usage=False).eval()


@pytest.mark.parametrize("images", [1, 2])
@torch.no_grad()
def test_stage_c(images: int, tmp_path: Path) -> None:
    net = randomised(StageC(CONFIG_C))
    x, r, text = torch.randn(2, 16, 6, 5), torch.rand(2), torch.randn(2, 9, 24)
    pooled, image = torch.randn(2, 1, 24), torch.randn(2, images, 16)
    out = theirs(net, tmp_path, diffusers.StableCascadeUNet)(
        sample=x, timestep_ratio=r, clip_text=text, clip_text_pooled=pooled, clip_img=image, return_dict=False
    )[0]
    assert relative_error(net(x, r, text, pooled, image), out) < TOLERANCE


@torch.no_grad()
def test_stage_b(tmp_path: Path) -> None:
    net = randomised(StageB(CONFIG_B))
    x, r, effnet, pooled = torch.randn(2, 4, 24, 20), torch.rand(2), torch.randn(2, 16, 3, 2), torch.randn(2, 1, 24)
    out = theirs(net, tmp_path, diffusers.StableCascadeUNet)(
        sample=x, timestep_ratio=r, clip_text_pooled=pooled, effnet=effnet, return_dict=False
    )[0]
    assert relative_error(net(x, r, effnet, pooled), out) < TOLERANCE


@torch.no_grad()
def test_stage_a(tmp_path: Path) -> None:
    net = randomised(StageA(StageAConfig(width=16, bottleneck_blocks=2, codebook_size=8)))
    other: Any = theirs(net, tmp_path, PaellaVQModel)
    images = torch.rand(2, 3, 16, 24)
    latents = net.encode(images)
    scale = net.config.scale_factor
    assert relative_error(latents * scale, other.encode(images).latents) < TOLERANCE
    assert (
        relative_error(net.decode(latents), other.decode(latents * scale, force_not_quantize=True).sample) < TOLERANCE
    )
