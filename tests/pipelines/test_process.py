"""Networks of other targets and schedules: their files say so, and whatever reads them obeys."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cascade.checkpoints import convert, inspect_file, load_model, save_model
from cascade.conditioning import StageCInputs, TextEncoder
from cascade.diffusion import Diffusion, Guidance, SamplingSettings, SeededNoise, sample
from cascade.errors import CascadeError, IncompatibleCheckpoint
from cascade.models import Process
from cascade.pipelines import Settings, StagePlan, generate
from cascade.pipelines.networks import Parts
from cascade.pipelines.plan import Start
from cascade.pipelines.process import diffusion_of
from cascade.pipelines.stages import invert_stage_c, sample_stage_c
from tests.small import part, small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric

PROCESSES = {
    "v": Process(target="v"),
    "x0": Process(target="x0"),
    "rectified_flow": Process(
        target="rectified_flow", scaling="lerp", schedule="rectified_flow", noise_condition="rectified_flow", shift=3
    ),
}
FEW = SamplingSettings(steps=4, guidance=Guidance(cfg=4.0), shift=2.0)


def write(path: Path, process: Process) -> Path:
    net: Any = copy.deepcopy(part("stage_c"))
    net.config = replace(net.config, process=process)
    save_model(net, path)
    return path


@pytest.mark.parametrize("name", PROCESSES)
@torch.no_grad()
def test_a_file_is_sampled_as_its_network_was_trained(name: str, tmp_path: Path) -> None:
    process, net = PROCESSES[name], part("stage_c")
    file = write(tmp_path / "stage_c.safetensors", process)
    settings = Settings(width=64, height=64, stage_c=FEW)
    found = generate(Parts({**small_cascade(), "stage_c": file}), ["a cat"], seeds=[3], settings=settings)
    encoder = TextEncoder(part("text_encoder"))
    text, negative, zeros = encoder.encode(["a cat"]), encoder.encode([""]), torch.zeros(1, 1, 8)
    noise = SeededNoise([3], "stage_c")
    expected, as_epsilon = (
        sample(
            net,
            noise.start(*found.stage_c.shape[1:]),
            FEW,
            cond=StageCInputs.of(text, zeros).as_kwargs(),
            uncond=StageCInputs.of(negative, zeros).as_kwargs(),
            noise=noise,
            diffusion=diffusion,
        )
        for diffusion in (
            Diffusion.named(process.schedule, process.scaling, process.target, process.noise_condition),
            Diffusion(),
        )
    )
    assert relative_error(found.stage_c, expected) < 1e-5
    assert relative_error(found.stage_c, as_epsilon) > 0.1


@pytest.mark.parametrize("name", PROCESSES)
def test_files_say_what_they_predict(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "stage_c.safetensors", PROCESSES[name])
    assert inspect_file(file).variant == f"Stage C, custom, predicts {name}"
    merged, again = tmp_path / "merged.safetensors", tmp_path / "again.safetensors"
    convert(file, merged, layout="comfyui")
    convert(merged, again, part="stage_c")
    for path in (file, merged, again):
        net = load_model(path, part="stage_c")
        assert net.config.process == PROCESSES[name]
        assert net.config.process.shift == PROCESSES[name].shift
    with pytest.raises(IncompatibleCheckpoint, match=f"it predicts {name}, and diffusers samples"):
        convert(file, tmp_path / "diffusers", layout="diffusers")


def test_a_network_as_released_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stage_c.safetensors"
    save_model(part("stage_c"), path)
    with safe_open(path, "pt") as file:
        assert "process" not in json.loads(file.metadata()["cascade.config"])
    assert "predicts" not in inspect_file(path).variant


@pytest.mark.parametrize("process", [{"target": "w"}, {"target": 3}, {"speed": "v"}, "v"])
def test_an_unknown_process_is_refused(process: Any, tmp_path: Path) -> None:
    net: Any = copy.deepcopy(part("stage_c"))
    path = tmp_path / "stage_c.safetensors"
    config = net.config
    data = {**config.to_dict(), "process": process}
    net.config = replace(config, process=Process(target="v"))
    save_model(net, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["cascade.config"] = json.dumps(data)
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + raw[8 + length :])
    with pytest.raises(CascadeError, match=r"metadata"):
        diffusion_of(load_model(path).config)


@pytest.mark.parametrize("name", PROCESSES)
@torch.no_grad()
def test_images_are_inverted_by_the_networks_own_process(name: str) -> None:
    net: Any = copy.deepcopy(part("stage_c"))
    net.config = replace(net.config, process=PROCESSES[name])
    text = TextEncoder(part("text_encoder")).encode(["a cat"])
    inputs = StageCInputs.of(text, torch.zeros(1, 1, 8))
    latents = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(1))
    plan: StagePlan[StageCInputs] = StagePlan(
        stage="stage_c",
        size=latents.shape[1:],
        seeds=[1],
        settings=replace(FEW, guidance=Guidance(cfg=1.0)),
        cond=inputs,
        uncond=inputs,
        start=Start(latents=latents),
    )
    found = invert_stage_c(net, plan)
    again = sample_stage_c(net, replace(plan, start=None, inverted=found))
    assert relative_error(again, latents) < 1e-3


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_the_part_of_a_run_is_the_inverse_of_its_schedule(name: str, shift: float) -> None:
    schedule = diffusion_of(replace(part("stage_c").config, process=PROCESSES[name])).schedule  # type: ignore[arg-type,type-var]
    for percent in (0.2, 0.5, 0.8):
        assert schedule.percent(float(schedule(1 - percent, shift)), shift) == pytest.approx(percent, abs=1e-5)
    assert schedule.percent(schedule.limits[0], shift) == 0
