"""Every network gives the reference's numbers."""

from __future__ import annotations

import pytest
import torch

from cascade import models
from cascade.checkpoints import load_model
from tests.support import INDEX, SHAPES, golden, golden_network, reference_weights, relative_error

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-4


def cases(kind: str) -> list[str]:
    found = [name for name, entry in INDEX.items() if entry["kind"] == kind]
    assert found
    return found


@pytest.mark.parametrize("case", cases("stage_c"))
def test_stage_c(case: str) -> None:
    net, data = golden_network(case), golden(case)
    inputs = [data[name] for name in ("x", "r", "clip_text", "clip_text_pooled", "clip_img")]
    assert relative_error(net(*inputs), data["out"]) < TOLERANCE
    if "out_sca_crp" in data:
        assert relative_error(net(*inputs, sca=data["sca"], crp=data["crp"]), data["out_sca_crp"]) < TOLERANCE
    if "out_two_images" in data:
        assert relative_error(net(*inputs[:4], data["clip_img_two"]), data["out_two_images"]) < TOLERANCE
    if "out_cnet" in data:
        control = [data["cnet_0"], None, data["cnet_2"]]
        assert relative_error(net(*inputs, control=control), data["out_cnet"]) < TOLERANCE


@pytest.mark.parametrize("case", cases("stage_b"))
def test_stage_b(case: str) -> None:
    net, data = golden_network(case), golden(case)
    inputs = [data[name] for name in ("x", "r", "effnet", "clip")]
    assert relative_error(net(*inputs), data["out"]) < TOLERANCE
    assert relative_error(net(*inputs, pixels=data["pixels"]), data["out_pixels"]) < TOLERANCE
    assert relative_error(net(*inputs, sca=data["sca"]), data["out_sca"]) < TOLERANCE


@pytest.mark.parametrize("case", cases("stage_a"))
def test_stage_a(case: str) -> None:
    net, data = golden_network(case), golden(case)
    latents = net.encode(data["images"])
    assert relative_error(latents, data["latents"]) < TOLERANCE
    assert relative_error(net.decode(latents), data["decoded"]) < TOLERANCE
    assert relative_error(net.decode(data["latents_in"]), data["decoded_in"]) < TOLERANCE


@pytest.mark.parametrize("case", cases("previewer"))
def test_previewer(case: str) -> None:
    data = golden(case)
    assert relative_error(golden_network(case)(data["latents"]), data["images"]) < TOLERANCE


@pytest.mark.parametrize("case", cases("effnet"))
def test_effnet(case: str) -> None:
    data = golden(case)
    assert relative_error(golden_network(case)(data["normalised"]), data["latents"]) < TOLERANCE


@pytest.mark.parametrize("case", cases("controlnet"))
def test_controlnet(case: str) -> None:
    net, data = golden_network(case), golden(case)
    residuals = net(data["x"])
    assert len(residuals) == INDEX[case]["length"]
    for block, residual in enumerate(residuals):
        expected = data.get(f"proj_{block}")
        assert (residual is None) == (expected is None)
        if residual is not None and expected is not None:
            assert relative_error(residual, expected) < TOLERANCE


@pytest.mark.parametrize("case", cases("ultrapixel_inr"))
def test_high_res_guide(case: str) -> None:
    net, data = golden_network(case), golden(case)
    assert relative_error(net(data["target"], data["guide"], data["r"]), data["out"]) < TOLERANCE


@pytest.mark.parametrize("case", cases("ultrapixel_stage_c"))
def test_stage_c_with_high_res_guides(case: str) -> None:
    net, data, entry = golden_network(case), golden(case), INDEX[case]
    config = models.HighResGuideConfig.from_reference(**entry["inr"])
    guides = load_model(reference_weights(SHAPES[f"{case}.guide"], entry["seed"]), config=config)
    inputs = [data[name] for name in ("clip_text", "clip_text_pooled", "clip_img")]

    low, features = net.features(data["low"], data["r_low"], *inputs)
    assert relative_error(low, data["out_low"]) < TOLERANCE
    for way, found in (("down", features.down), ("up", features.up)):
        assert len(found) == 2
        for index, feature in enumerate(found):
            assert relative_error(feature, data[f"{way}_{index}"]) < TOLERANCE
    assert len(entry["sizes"]) == 3  # one for each factor on the way up
    for height, width in entry["sizes"]:
        size = f"{height}x{width}"
        x, r = data[f"x_{size}"], data[f"r_{size}"]
        assert relative_error(net(x, r, *inputs, guides=guides, features=features), data[f"out_{size}"]) < TOLERANCE
        assert relative_error(net(x, r, *inputs), data[f"plain_{size}"]) < TOLERANCE


def test_a_wrong_weight_is_noticed() -> None:
    net, data = golden_network("stage_c_small"), golden("stage_c_small")
    net.up_blocks[1][2].attention.attn.to_v.weight.mul_(1.01)
    inputs = [data[name] for name in ("x", "r", "clip_text", "clip_text_pooled", "clip_img")]
    assert relative_error(net(*inputs), data["out"]) > TOLERANCE
    assert torch.isfinite(data["out"]).all()
