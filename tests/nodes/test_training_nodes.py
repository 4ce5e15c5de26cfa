"""ControlNets and whole networks trained inside a real host, and the newer inputs of Train LoRA."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade.adapters import read_lora
from cascade.checkpoints import load_model
from tests.nodes.hosting import Failed, Graph
from tests.nodes.networks import file_name

CONTROL, FINETUNE, LORA = "CascadeTrainControlNet", "CascadeFinetune", "CascadeTrainLora"
PARTS = {
    "unet_name": "stage_c",
    "clip_name": "text_encoder",
    "clip_vision_name": "image_encoder",
    "encoder_name": "effnet",
    "previewer": "previewer",
}


@pytest.fixture
def folder(host: Any) -> str:
    """Four images of two shapes in the host's input folder, with captions, hints and masks; one lacks its hint."""
    place = host.base / "input" / "shapes"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        size = (96, 64) if number % 2 else (64, 96)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
        Image.fromarray(pixels[..., 0]).save(place / f"{number}.mask.png")
        if number:
            Image.fromarray(pixels[..., 0]).save(place / f"{number}.hint.png")
        (place / f"{number}.txt").write_text(f"image {number}", encoding="utf-8")
    return "shapes"


def run(host: Any, node: str, **changes: Any) -> Any:
    known = {each.id: each for each in host.classes[node].GET_SCHEMA().inputs}
    values = {name: each.default for name, each in known.items() if not each.optional}
    parts = {name: file_name(kind) for name, kind in PARTS.items() if name in known}
    small = {"steps": 2, "batch_size": 2, "resolution": 64, "learning_rate": 1e-3, "sample_every": 2}
    return host.call(node, **{**values, **parts, **small, **changes})


def test_a_folder_becomes_a_controlnet(host: Any, folder: str) -> None:
    control, loss, samples, report = run(host, CONTROL, name="edges", folder=folder)
    path = host.models / "controlnet" / "edges.safetensors"
    net = load_model(path)
    assert report.splitlines()[0] == str(path)
    assert "4 images at 64 x 64" in report
    assert (net.config.in_channels, net.config.backbone) == (1, "effnet")
    assert asdict(control.config) == asdict(net.config)
    assert loss.shape == (1, 420, 900, 3)
    assert samples.shape[0] == 1
    assert samples.shape[1] > 256  # hints, and images below them
    assert (
        "edges.safetensors"
        in host.classes["CascadeLoadControlNet"].INPUT_TYPES()["required"]["control_net_name"][1]["options"]
    )
    again = run(host, CONTROL, name="edges", folder=folder, steps=3)[3]
    assert "3 steps" in again


def test_hints_beside_the_images(host: Any, folder: str) -> None:
    stored = {"folder": folder, "hint": "stored", "aspect_ratios": True, "masks": True}
    control, *_, report = run(host, CONTROL, name="depth", **stored)
    assert control.config.in_channels == 1
    assert "3 images at about 64 x 64" in report
    assert "left out 0.png: it has no hint" in report
    colored = run(host, CONTROL, name="poses", hint_channels="color", **stored)[0]
    assert colored.config.in_channels == 3
    graph = Graph()
    trained = graph(CONTROL, **_inputs(host, CONTROL, name="drawn", hint="identity", folder="tiny shapes (included)"))
    with pytest.raises(Failed, match="has no masks, hints or faces"):
        host.run(graph, control=trained[3])


def _inputs(host: Any, node: str, **changes: Any) -> dict[str, Any]:
    known = host.classes[node].GET_SCHEMA().inputs
    parts = {name: file_name(kind) for name, kind in PARTS.items() if name in {each.id for each in known}}
    return {**{each.id: each.default for each in known if not each.optional}, **parts, **changes}


def test_a_folder_becomes_a_stage_c(host: Any, folder: str) -> None:
    model, _, samples, report = run(host, FINETUNE, name="tuned", folder=folder, ema=0.5, sample_prompts="one\ntwo")
    path = host.models / "diffusion_models" / "tuned.safetensors"
    before = load_model(Path(host.models) / "diffusion_models" / file_name("stage_c"))
    after = load_model(path)
    assert after.config == before.config
    assert any(not value.equal(after.state_dict()[name]) for name, value in before.state_dict().items())
    assert "4 images at 64 x 64" in report
    assert samples.shape[2] == 256
    assert model.model.diffusion_model is not None
    path.unlink()


def test_what_train_lora_can_do_besides(host: Any, folder: str) -> None:
    more = {"aspect_ratios": True, "masks": True, "vectors": 3, "kind": "lokr", "optimizer": "adafactor"}
    lora, *_, report = run(host, LORA, name="shaped", folder=folder, rank=2, token="[shape]", **more)
    assert "4 images at about 64 x 64" in report
    assert len(lora.tokens[0].vectors) == 3
    saved = read_lora(host.models / "loras" / "shaped.safetensors")
    assert saved.training["kind"] == "lokr"
    with_class = {"class_folder": folder, "class_target": "predicted", "token": ""}
    assert run(host, LORA, name="held", folder=folder, rank=2, **with_class)[0].changes["stage_c"]
