"""Networks of other targets and schedules, in the host's sampler."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingStableCascade

from cascade.checkpoints import save_model
from cascade.conditioning import StageCInputs
from cascade.diffusion import Guidance
from cascade.models import Process
from cascade.pipelines import SamplingSettings, StagePlan, sample_stage_c
from cascade.pipelines.plan import Start
from tests.nodes import networks
from tests.nodes.networks import random
from tests.nodes.node_calls import NEGATIVE, POSITIVE, stage_c
from tests.pipelines.test_process import PROCESSES
from tests.support import relative_error


@pytest.fixture
def other(host: Any, request: pytest.FixtureRequest) -> Any:
    """A MODEL and the library's network of the same file."""
    net: Any = copy.deepcopy(networks.network("stage_c"))
    net.config = replace(net.config, process=PROCESSES[request.param])
    path = host.models / "diffusion_models" / "other_process.safetensors"
    save_model(net, path)
    try:
        yield host.pack("nodes.host.models").load_stage("stage_c", path), net
    finally:
        path.unlink()


def library(net: Any, start: Start | None = None, **settings: Any) -> torch.Tensor:
    whole = SamplingSettings(**{"steps": 4, "guidance": Guidance(), "shift": 2.0, **settings})
    inputs = StageCInputs.without_image(POSITIVE, networks.IMAGE)
    with torch.no_grad():
        return sample_stage_c(
            net,
            StagePlan(
                stage="stage_c",
                cond=inputs,
                uncond=inputs.unconditional(NEGATIVE),
                size=(16, 5, 6),
                seeds=[7],
                settings=whole,
                start=start,
            ),
        )


GUIDED = Guidance(cfg_rescale=0.0)


@pytest.mark.parametrize("other", PROCESSES, indirect=True)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_a_file_is_sampled_as_in_the_library(host: Any, other: Any, sampler: str) -> None:
    model, net = other
    settings: dict[str, Any] = {"sampler_name": sampler, "steps": 6}
    found = stage_c(host, model=model, cfg_rescale=0.0, **settings)
    assert relative_error(found, library(net, guidance=GUIDED, **settings)) < 1e-3
    released = replace(net.config, process=Process())
    net.config = released
    assert relative_error(found, library(net, guidance=GUIDED, **settings)) > 0.1


@pytest.mark.parametrize("other", PROCESSES, indirect=True)
def test_image_to_image_and_a_part_of_the_run_with_guidance(host: Any, other: Any) -> None:
    model, net = other
    samples = random(1, 16, 5, 6, seed=4)
    found = stage_c(
        host,
        model=model,
        latent_image={"samples": samples},
        denoise=0.6,
        cfg_rescale=0.0,
        start_percent=0.5,
        end_percent=0.8,
    )
    guidance = Guidance(cfg_rescale=0.0, start_percent=0.5, end_percent=0.8)
    expected = library(net, Start(latents=samples), guidance=guidance, start_percent=0.4)
    assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("other", ["v"], indirect=True)
def test_a_node_that_knows_one_target_only_is_refused(host: Any, other: Any) -> None:
    model, _ = other
    [patched] = ModelSamplingStableCascade().patch(model, 2.0)
    with pytest.raises(Exception, match="remove that node"):
        stage_c(host, model=patched)
