"""What a training needs of memory: counted on a step without numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascade.models import Level, StageBConfig, StageC, StageCConfig
from cascade.training.config import TrainingConfig
from cascade.training.lora_layers import Adapter, Wiring
from cascade.training.needs import peak
from cascade.training.step_memory import Step, StepMemory, stage_b_step, stage_c_step, step_memory

SIZE = StageCConfig(
    condition_channels=64, clip_text=64, clip_text_pooled=64, clip_img=64, levels=(Level(64, 2, 1), Level(64, 2, 3))
)


def config(**changes: Any) -> TrainingConfig:
    values = {"task": "x", "output": Path("none"), "steps": 1, "batch_size": 2, "device": "cpu", "ema": 0.0}
    return TrainingConfig(**{**values, **changes})


def needed(wire: Any = None, **changes: Any) -> StepMemory:
    settings = config(**changes)
    return step_memory(lambda: stage_c_step(settings, SIZE, side=8, wire=wire), settings)


def adapter(net: nn.Module) -> nn.Module:
    wiring = Wiring(Adapter())
    wiring.add_changes(net, "stage_c", ["attention"], rank=2, alpha=2, seed=0, dropout=0.0, dora=False)
    return wiring.adapter


def test_one_layer_is_counted() -> None:
    width, rows = 1000, 100

    def build() -> Step:
        layer = nn.Linear(width, width, bias=False)

        def loss() -> Tensor:
            return layer(torch.empty(rows, width)).square().mean()

        return Step([layer], [layer], loss)

    found = step_memory(build, config())
    weight, rows_of = 4 * width * width, 4 * rows * width
    assert (found.numbers, found.trained, found.frozen, found.gradients) == (width * width, weight, 0, weight)
    # Input and output stay for the backward pass; the gradient of the output and its parts come with it.
    assert weight + 2 * rows_of <= found.peak <= weight + 6 * rows_of


def test_a_step_of_a_network_keeps_what_torch_really_keeps() -> None:
    """Against the tensors that autograd saves in a step with numbers: most of a step's memory."""
    settings = config()
    torch.manual_seed(0)
    step = stage_c_step(settings, SIZE, side=8)
    weights = {p.untyped_storage().data_ptr() for p in step.trained[0].parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.loss()
    del loss
    found = step_memory(lambda: stage_c_step(settings, SIZE, side=8), settings)
    assert found.numbers == sum(p.numel() for p in StageC(SIZE).parameters())
    assert sum(saved.values()) <= found.activations <= 1.5 * sum(saved.values())


def test_settings_that_save_memory() -> None:
    plain = needed()
    assert needed(gradient_checkpointing=True).activations < 0.6 * plain.activations
    halves = needed(precision="bfloat16", weights_dtype="bfloat16")
    assert (halves.trained, halves.gradients) == (plain.trained // 2, plain.gradients // 2)
    # Of a LoRA the base has no gradients.
    lora = needed(adapter, precision="bfloat16")
    assert lora.frozen == plain.trained // 2
    assert lora.gradients == lora.trained < 0.1 * plain.trained


def test_the_peak_counts_what_lasts() -> None:
    found = needed()
    expected = 3 * found.trained + found.peak
    assert peak(found, config()) == expected
    assert peak(found, config(ema=0.9)) == expected + found.trained
    assert peak(found, config(ema=0.9, ema_device="cpu")) == expected
    assert peak(found, config(optimizer="adafactor")) == found.trained + found.peak
    assert peak(found, config(), 4) == found.trained + found.activations


def test_a_stage_b_is_counted_too() -> None:
    levels = (Level(16, 0, 1, "CT", up_repeats=2), Level(16, 2, 1, up_repeats=2))
    size = StageBConfig(condition_channels=16, clip=8, levels=levels)
    few, many = (
        step_memory(lambda n=n: stage_b_step(config(batch_size=n), size, side=16, effnet=2), config()) for n in (1, 4)
    )
    assert few.numbers == many.numbers
    assert many.activations == pytest.approx(4 * few.activations, rel=0.2)
