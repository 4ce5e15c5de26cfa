"""Editing beside what else changes a run: LoRAs, ControlNets, presets and regional prompts."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from cascade.adapters import Applied, Lora, attach
from cascade.pipelines import PRESETS, Start
from cascade.pipelines.stages import sample_stage_c
from tests.nodes.node_calls import NEGATIVE, conditioning, model, stage_b, stage_c
from tests.nodes.test_adapters import load, put, some_lora
from tests.nodes.test_controlnet import control as controlnet
from tests.nodes.test_controlnet import hint
from tests.nodes.test_editing import AFTER, BEFORE, EMPTY, control, edited, inverted, library_net, plan, prompt
from tests.support import relative_error


@cache
def lora() -> Lora:
    return some_lora(token=False)


def with_lora(host: Any) -> Any:
    return load(host, put(host, lora()), model(host, "stage_c"))[0]


def controlled(host: Any, *conds: Any) -> list[Any]:
    """CONDITIONINGs with a ControlNet."""
    given = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "apply_to": "positive and negative"}
    given |= {"control_net": controlnet(host, "canny"), "image": hint("canny")}
    empty = conditioning(NEGATIVE)
    return [host.call("CascadeApplyControlNet", **given, positive=cond, negative=empty)[0] for cond in conds]


def test_an_edit_with_a_lora_is_the_librarys(host: Any) -> None:
    net, acting = library_net(), control(host, blend=0.0)
    start = Start(latents=EMPTY.repeat(2, 1, 1, 1))
    with attach([Applied(lora(), 1.0)], stage_c=net), torch.no_grad():
        given = plan(host, BEFORE, AFTER, attention=acting, keeping=acting.keeping, start=start)
        expected = sample_stage_c(net, given)
    after, before, _ = edited(host, model=with_lora(host))
    # The host adds a LoRA to the weights, the library to what the layers give: rounding differs.
    assert relative_error(before, expected[:2]) < 1e-3
    assert relative_error(after, expected[2:]) < 1e-3
    assert relative_error(after, edited(host)[0]) > 1e-2


def test_an_image_is_inverted_and_edited_with_a_lora(host: Any) -> None:
    changed = with_lora(host)
    latent = inverted(host, model=changed)
    _, again, _ = edited(host, model=changed, latent_image=latent)
    assert relative_error(again, latent["samples"]) < 1e-3


def test_an_edit_follows_a_controlnet(host: Any) -> None:
    source, positive, negative = controlled(host, prompt(host, BEFORE), prompt(host, AFTER), conditioning(NEGATIVE))
    after, before, _ = edited(host, source=source, positive=positive, negative=negative)
    assert relative_error(before, stage_c(host, batch=2, positive=source, negative=negative)) < 1e-4
    plain: tuple[Tensor, Tensor, Tensor] = edited(host)
    assert relative_error(before, plain[1]) > 1e-2
    assert relative_error(after, plain[0]) > 1e-2
    assert relative_error(after, before) > 1e-2


def test_a_preset_is_its_settings(host: Any) -> None:
    file = "tiny cascade (included)"
    given = {"stage_c": model(host, "stage_c"), "stage_b": model(host, "stage_b")}
    *_, options = host.call("CascadePreset", preset="fast", lora_stage_c=file, lora_stage_b=file, **given)
    fast = PRESETS["fast"].stage_c
    own = {"steps": fast.steps, "cfg": fast.guidance.cfg, "sampler_name": fast.sampler_name, "shift": fast.shift}
    assert torch.equal(edited(host, options=options)[0], edited(host, **own)[0])


def test_stage_b_reads_an_edit_of_a_model_with_a_lora(host: Any) -> None:
    after, _, _ = edited(host, model=with_lora(host))
    assert torch.isfinite(stage_b(host, after[:1])).all()
