"""Quantized files in ComfyUI: computed by its own layers where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.quant_ops
import pytest
import torch

from cascade.checkpoints import convert
from tests.nodes import networks
from tests.nodes.model_pairs import conditioning, ours, sample
from tests.nodes.test_models import prior
from tests.support import relative_error

FORMATS = {"fp8_scaled": "float8_e4m3fn", "int8": "int8_tensorwise"}
LAYER = "diffusion_model.down_blocks.0.2.attention.attn.to_q.weight"


def file_of(host: Any, folder: Path, kind: str, name: str) -> Path:
    target = folder / "quantized.safetensors"
    convert(host.models / "diffusion_models" / networks.file_name(kind), target, quantize=name)
    return target


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["stage_c", "stage_b"])
def test_the_host_computes_with_quantized_layers(host: Any, tmp_path: Path, kind: str, name: str) -> None:
    conds = conditioning(**prior(kind)), conditioning(seed=2)
    path = file_of(host, tmp_path, kind, name)
    load = host.pack("nodes.host.models").load_stage
    model = load(kind, path)
    quantized = [
        module
        for module in model.model.diffusion_model.modules()
        if isinstance(getattr(module, "weight", None), comfy.quant_ops.QuantizedTensor)
    ]
    assert bool(quantized) is (FORMATS[name] in comfy.quant_ops.QUANT_ALGOS)
    expected = sample(ours(host, kind), kind, *conds, steps=1)
    found = sample(model, kind, *conds, steps=1)
    assert relative_error(found, expected) < 0.3
    # In another type the numbers are what they stand for.
    plain = load(kind, path, "fp32")
    assert not isinstance(plain.model.diffusion_model.clf[1].weight, comfy.quant_ops.QuantizedTensor)
    assert relative_error(found, sample(plain, kind, *conds, steps=1)) < 0.1


def test_a_lora_acts_on_quantized_layers(host: Any, tmp_path: Path) -> None:
    model = host.pack("nodes.host.models").load_stage("stage_c", file_of(host, tmp_path, "stage_c", "fp8_scaled"))
    conds = conditioning(), conditioning(seed=2)
    before = sample(model, "stage_c", *conds)
    patched = model.clone()
    shape = patched.model.diffusion_model.get_parameter(LAYER.partition(".")[2]).shape
    assert len(patched.add_patches({LAYER: (networks.random(*shape),)})) == 1
    assert relative_error(sample(patched, "stage_c", *conds), before) > 1e-3
    assert torch.equal(sample(model, "stage_c", *conds), before)
