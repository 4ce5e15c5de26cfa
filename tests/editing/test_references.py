"""References for style and content give the numbers of the public code of RB-Modulation."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cascade.conditioning import StageCInputs
from cascade.diffusion import Guidance, SamplingSettings, sample
from cascade.editing import ControlSteps, NetworkCall, References, StyleControl, Tokens
from cascade.errors import InvalidSettings
from cascade.models import StageC
from tests.support import DATA, golden, golden_network, relative_error

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-4
# What google/RB-Modulation (commit c0c1f41) computes with the weights of the golden case.
NUMBERS = load_file(DATA / "rb_modulation.safetensors")
STAGE_C = golden("stage_c_small")


def net() -> StageC:
    found = golden_network("stage_c_small")
    assert isinstance(found, StageC)
    return found


def references(*, content: bool = False, **more: float) -> References:
    return References(style=NUMBERS["style"], content=NUMBERS["content"] if content else None, **more)


def conditions() -> StageCInputs:
    return StageCInputs(STAGE_C["clip_text"], STAGE_C["clip_text_pooled"], STAGE_C["clip_img"])


def prediction(acting: References, inputs: dict[str, Tensor], x: Tensor, r: Tensor) -> Tensor:
    """Stage C's with references, whose conditions are among the inputs."""
    stage_c = net()
    call = NetworkCall(0.5, (True,), Tokens.of(**inputs, each=stage_c.config.condition_tokens))
    return stage_c.denoise(x, r, stage_c.conditions(**inputs), around_attention=acting.around(call))


def called(acting: References | None) -> Tensor:
    cond = conditions()
    if acting is None:
        return net()(STAGE_C["x"], STAGE_C["r"], **cond.as_kwargs())
    return prediction(acting, acting.inputs(cond).as_kwargs(), STAGE_C["x"], STAGE_C["r"])


@pytest.mark.parametrize("content", [False, True])
def test_the_public_codes_aggregation(content: bool) -> None:
    expected = NUMBERS["out_content_style" if content else "out_style"]
    assert relative_error(expected, STAGE_C["out"]) > 100 * TOLERANCE
    assert relative_error(called(references(content=content)), expected) < TOLERANCE


def test_a_weight_of_zero_and_a_part_of_the_run_without_references_are_the_plain_run() -> None:
    plain = called(None)
    assert relative_error(called(references(weight=0.0)), plain) < 1e-6
    assert relative_error(called(references(start_percent=0.6)), plain) < 1e-6
    half, whole = (relative_error(called(references(weight=weight)), plain) for weight in (0.5, 1.0))
    assert 1e-3 < half < whole


def test_there_is_at_least_one_reference() -> None:
    with pytest.raises(InvalidSettings, match="there is none"):
        References()


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(InvalidSettings, match="from 0 to 1"):
        references(weight=weight)


def described(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Style and content as in the public code's run: projections of the latents, which stand for the image there."""
    seen = F.adaptive_avg_pool2d(latents, 2).flatten(1)
    style, content = (F.normalize(seen @ NUMBERS[f"head_{name}"], dim=1) for name in ("style", "content"))
    return style, content


def controlled(control: ControlSteps | None, *, content: bool = False) -> Tensor:
    """Two steps of DDIM from the middle of the schedule with references, and control where there are settings."""
    acting = references(content=content)
    steering = None
    if control is not None:
        style, pieces = described(NUMBERS["style_latents"])[0], described(NUMBERS["content_latents"])[1]
        steering = StyleControl(described, style, pieces if content else None, control)

    cond = acting.inputs(StageCInputs(**(conditions().as_kwargs() | {"clip_img": NUMBERS["style"][:, :0]}))).as_kwargs()
    # As there, guidance is away from zeros, for the references too.
    nothing = {name: torch.zeros_like(tensor) for name, tensor in cond.items()}
    return sample(
        lambda x, r, inputs: prediction(acting, inputs, x, r),
        NUMBERS["x_init"],
        SamplingSettings(steps=2, sampler_name="ddim", start_percent=0.5, guidance=Guidance(cfg=4.0, cfg_rescale=0.0)),
        cond={"inputs": cond},
        uncond={"inputs": nothing},
        steering=steering,
    )


@pytest.mark.parametrize(
    ("name", "control", "content"),
    [
        ("uncontrolled", None, False),
        ("controlled_style", ControlSteps(pull=0), False),
        ("controlled_style_pull", ControlSteps(), False),
        ("controlled_both", ControlSteps(pull=0.5, until=0.5), True),
    ],
)
def test_the_public_codes_controlled_run(name: str, control: ControlSteps | None, content: bool) -> None:
    if control is not None:
        assert relative_error(NUMBERS[name], NUMBERS["uncontrolled"]) > 0.1
    # As other whole runs: in float32 the embedding of the noise level differs by 1e-4 from run to run of the formulas.
    assert relative_error(controlled(control, content=content), NUMBERS[name]) < 1e-3


def test_control_of_one_image_does_not_depend_on_the_others() -> None:
    style = described(NUMBERS["style_latents"])[0]
    x0 = NUMBERS["x_init"]
    together = StyleControl(described, style)(0, 4, x0)
    alone = StyleControl(described, style[1:])(0, 4, x0[1:])
    assert relative_error(together[1:], alone) < 1e-5
    assert torch.equal(StyleControl(described, style, settings=ControlSteps(until=0.5))(2, 4, x0), x0)
    assert torch.equal(StyleControl(described, style, settings=ControlSteps(steps=0))(0, 4, x0), x0)


def test_control_brings_the_style_closer() -> None:
    style, x0 = described(NUMBERS["style_latents"])[0], NUMBERS["x_init"]
    found = StyleControl(described, style, settings=ControlSteps(pull=0))(0, 4, x0)
    before, after = (F.cosine_similarity(described(x)[0], style) for x in (x0, found))
    assert (after > before).all()


def test_negative_settings_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="learning_rate"):
        ControlSteps(learning_rate=-1)
