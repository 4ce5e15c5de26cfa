"""ControlNets: what they are shown, that Stage C stays as it is, and that they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade.checkpoints import load_model, save_model
from cascade.errors import InvalidConfig
from cascade.images import canny, inpaint_hint
from cascade.models import CONTROLNET_CANNY, T2I_ADAPTER, ControlNet, Previewer, PreviewerConfig, initialize
from cascade.training import SETTINGS, TASKS, fit, parse_config
from cascade.training.backbones import IMAGENET
from cascade.training.controlnet import default_model
from cascade.training.data import to_images
from cascade.training.filters import build_filter, salient
from cascade.training.metrics import read_metrics
from tests import small

STAGES = [{"fused": True, "expansion": 1, "stride": 2, "width": 8, "depth": 1}] * 4
EFFNET = {"blocks": [0, 2], "features": 8, "stem": 4, "stages": STAGES}
LARGE = {"blocks": [0, 1, 2, 3], "backbone": "large", "inside": [16, 8], "depth": 1, "features": 8}
SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controlnet")
    for kind in ("stage_c", "text_encoder", "effnet"):
        save_model(small.part(kind), folder / f"{kind}.safetensors")
    save_model(initialize(Previewer(PreviewerConfig(width=8))).eval(), folder / "previewer.safetensors")
    return folder


def build(folder: Path, output: str = "none", changes: dict[str, Any] | None = None, **section: Any) -> Any:
    whole = {
        "images": {"source": "tiny", "count": 12, "seed": 1, "size": SIZE},
        "cache": "cache",
        "stage_c": "stage_c.safetensors",
        "text_encoder": "text_encoder.safetensors",
        "effnet": "effnet.safetensors",
        "previewer": "previewer.safetensors",
        "effnet_size": SIZE,
        "hint_size": SIZE,
        "sample_steps": 2,
        **section,
    }
    plain = {"task": "controlnet", "output": output, "steps": 4, "batch_size": 4, "log_every": 1, "device": "cpu"}
    config = parse_config({**plain, **(changes or {}), "controlnet": whole}, SETTINGS, where="test", root=folder)
    return TASKS["controlnet"].task(config)


@pytest.mark.parametrize(
    ("name", "model", "shape"),
    [
        ("canny", EFFNET, (4, 1, SIZE, SIZE)),
        ("sketch", EFFNET, (4, 1, SIZE, SIZE)),
        ("inpainting", EFFNET, (4, 4, SIZE, SIZE)),
        ("super_resolution", LARGE, (4, 16, 8, 8)),
    ],
)
def test_each_filter_trains_and_leaves_stage_c_alone(
    folder: Path, tmp_path: Path, name: str, model: dict[str, Any], shape: tuple[int, ...]
) -> None:
    task = build(folder, str(tmp_path), {"sample_every": 4}, filter=name, model=model)
    assert task.batch(0).hints.shape == shape
    before = {key: value.clone() for key, value in task.stage_c.state_dict().items()}
    assert fit(task, task.config).complete
    assert all(torch.equal(value, before[key]) for key, value in task.stage_c.state_dict().items())
    assert (tmp_path / "samples" / "step_00000004.png").exists()
    net = load_model(tmp_path / f"controlnet_{name}.safetensors")
    assert (net.config.in_channels, net.config.width) == (shape[1], small.CONFIGS["stage_c"].levels[0].width)
    assert net.config.hint == name
    assert any(parameter.abs().max() > 0 for parameter in net.projections[0][2].parameters())


def test_before_the_first_step_nothing_is_changed(folder: Path) -> None:
    task = build(folder, filter="canny", model=EFFNET)
    batch = task.batch(0)
    residuals = task.modules["controlnet_canny"](batch.hints)
    assert [residual is None for residual in residuals] == [False, True, False]
    assert all(residual.abs().max() == 0 for residual in residuals if residual is not None)


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    changes = {"steps": 60, "learning_rate": 1e-2, "batch_size": 12, "ema": 0.9}
    task = build(folder, str(tmp_path), changes, filter="super_resolution", model=LARGE)
    outcome = fit(task, task.config)
    first = np.mean([line["loss"] for line in read_metrics(tmp_path)[:10]])
    assert outcome.complete
    assert np.mean([line["loss"] for line in read_metrics(tmp_path)[-10:]]) < 0.97 * first


def test_it_goes_on_from_another(folder: Path, tmp_path: Path) -> None:
    first = build(folder, str(tmp_path), filter="super_resolution", model=LARGE)
    fit(first, first.config)
    path = tmp_path / "controlnet_super_resolution.safetensors"
    task = build(folder, filter="super_resolution", model=LARGE, start=str(path))
    found, expected = task.modules["controlnet_super_resolution"].state_dict(), load_model(path).state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in expected.items())
    with pytest.raises(InvalidConfig, match="has other sizes than model"):
        build(folder, filter="super_resolution", model={**LARGE, "blocks": [0]}, start=str(path))


def test_a_new_backbone_starts_with_that_of_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = build(folder, filter="inpainting", model=EFFNET).modules["controlnet_inpainting"]
    save_model(other, tmp_path / "other.safetensors")
    at_hand = tmp_path / "checkpoints" / IMAGENET
    at_hand.parent.mkdir()
    torch.save({f"features.{name}": value for name, value in other.backbone.state_dict().items()}, at_hand)

    def differing(**section: Any) -> list[str]:
        net = build(folder, filter="canny", model=EFFNET, **section).modules["controlnet_canny"]
        found, wanted = net.backbone.state_dict(), dict(other.backbone.state_dict())
        first = next(iter(wanted))
        wanted[first] = wanted[first][:, :1]  # it reads edges, the other one images and masks
        return [name for name, value in wanted.items() if not torch.equal(found[name], value)]

    assert differing() != []
    assert differing(backbone=str(tmp_path / "other.safetensors")) == []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert differing() == [], "torchvision's weights are at hand"
    for model, name, words in (
        ({**EFFNET, "stem": 8}, "canny", "no EfficientNet of the ControlNet's sizes"),
        (LARGE, "super_resolution", "takes no such file"),
    ):
        with pytest.raises(InvalidConfig, match=words):
            build(folder, filter=name, model=model, backbone=str(tmp_path / "other.safetensors"))


def test_what_a_model_leaves_out_follows_from_stage_c(folder: Path) -> None:
    assert default_model(2048, 64, 1)["blocks"] == [0, 4, 8, 12, 51, 55, 59, 63]
    assert default_model(1536, 32, 16)["blocks"] == [0, 2, 4, 6, 25, 27, 29, 31]
    assert default_model(1536, 32, 16)["backbone"] == "large"
    config = build(folder, filter="canny").modules["controlnet_canny"].config
    assert (config.blocks, config.backbone, config.features) == ((0, 1, 2, 3), "effnet", 96)


def test_masks_follow_what_draws_the_eye() -> None:
    image = np.full((96, 96, 3), 128, np.uint8)
    image[20:40, 50:70] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    mask = salient(image, 0.05)
    assert mask.mean() == pytest.approx(0.05, abs=0.01)
    assert mask[16:44, 46:74].sum() > 0.8 * mask.sum()
    shown = build_filter("inpainting", {"masks": "saliency", "p_outpaint": 1.0}, 96, None, 3)
    hint = shown.hint(torch.from_numpy(image)[None], np.random.default_rng(0))
    assert hint[0, 3, 30, 60] == 0
    assert hint[0, 3, 80, 10] == 1


def test_an_adapter_is_a_tenth_of_a_controlnet(folder: Path) -> None:
    """The preset gives the sizes, and settings of its own change them."""
    task = build(folder, filter="sketch", preset="t2i_adapter", model={"blocks": [0, 2]})
    net = task.modules["t2i_sketch"]
    assert (net.config.features, net.config.stages) == (T2I_ADAPTER.features, T2I_ADAPTER.stages)
    changed = build(folder, filter="sketch", preset="t2i_adapter", model=EFFNET).modules["t2i_sketch"]
    assert changed.config.features == EFFNET["features"]
    sizes = [sum(p.numel() for p in ControlNet(config).parameters()) for config in (CONTROLNET_CANNY, T2I_ADAPTER)]
    assert sizes[0] > 10 * sizes[1]


def drawn(count: int = 3) -> Any:
    from cascade.tiny import drawing

    return to_images(torch.from_numpy(drawing.batch(1, count, size=SIZE).images))


def test_edges_as_shown_are_those_of_the_hint() -> None:
    kept = build_filter("CannyFilter", {"resize": 48}, SIZE, None, 2)
    images = drawn()
    hint = kept.hint(torch.from_numpy(kept.compute(images)), np.random.default_rng(0))
    assert torch.allclose(hint, canny(images, size=48), atol=1 / 255)


def test_masks_keep_to_their_area_and_follow_from_the_generator() -> None:
    shown = build_filter("InpaintFilter", {"thresold": [0.04, 0.4], "p_outpaint": 0.0}, SIZE, None, 2)
    rows = torch.from_numpy(shown.compute(drawn(64)))
    hints = shown.hint(rows, np.random.default_rng(3))
    masks = hints[:, 3:]
    assert torch.equal(hints, inpaint_hint(to_images(rows), masks))
    assert torch.equal(hints, shown.hint(rows, np.random.default_rng(3)))
    areas = masks.mean(dim=(1, 2, 3))
    assert 0 < float(areas.min()) < float(areas.max()) <= 0.41
    outside = build_filter("inpainting", {"p_outpaint": 1.0}, SIZE, None, 2).hint(rows, np.random.default_rng(3))
    border = torch.cat([outside[:, 3, 0], outside[:, 3, -1], outside[:, 3, :, 0], outside[:, 3, :, -1]], dim=1)
    assert bool((border.amax(dim=1) == 1).all())


def test_the_references_lines_are_understood(folder: Path) -> None:
    task = build(
        folder,
        reference={
            "controlnet_filter": "SREffnetFilter",
            "controlnet_filter_params": {"scale_factor": 0.5},
            "controlnet_blocks": [0, 3],
            "controlnet_bottleneck_mode": "simple",
        },
    )
    config = task.modules["controlnet_super_resolution"].config
    assert (config.backbone, config.blocks, config.in_channels) == ("simple", (0, 3), 16)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"filter": "depth"},
            "filter is 'depth'; known filters: canny, sketch, inpainting, .*, stored, identity",
        ),
        ({"filter": "canny", "filter_params": {"breadth": 3}}, "filter_params: .*breadth"),
        ({}, r"missing filter \(or reference\)"),
        ({"filter": "canny", "reference": {}}, "stands in place of"),
        ({"reference": {"filter": "canny"}}, "unknown key 'filter'; the nearest known one is 'controlnet_filter'"),
        ({"filter": "inpainting", "filter_params": {"threshold": 0.3}}, "filter_params: threshold: .*found 0.3"),
        ({"filter": "canny", "model": {**EFFNET, "width": 8}}, "width is 8, Stage C's 16"),
        ({"filter": "canny", "model": {**EFFNET, "in_channels": 3}}, "in_channels is 3, the filter gives 1"),
        ({"filter": "canny", "model": {**EFFNET, "blocks": [0, 4]}}, "blocks names 4, Stage C's last is 3"),
        ({"filter": "canny", "model": EFFNET, "repeats": 3}, "repeats 3 must divide batch_size 4"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, section: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        build(folder, **section)
