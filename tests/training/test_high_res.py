"""High-res guides: Stage C stays as it is, the guides begin without effect and learn, and wrong settings are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.checkpoints import load_model, save_model
from cascade.errors import InvalidConfig
from cascade.models import Features, HighResGuides
from cascade.training import SETTINGS, TASKS, fit, parse_config
from tests import small
from tests.support import relative_error

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("high_res")
    for kind in ("stage_c", "text_encoder", "effnet"):
        save_model(small.part(kind), folder / f"{kind}.safetensors")
    return folder


def build(folder: Path, output: str = "none", **section: Any) -> Any:
    whole = {
        "images": {"source": "tiny", "count": 8, "seed": 1, "size": 2 * SIZE},
        "cache": "cache",
        "stage_c": "stage_c.safetensors",
        "text_encoder": "text_encoder.safetensors",
        "effnet": "effnet.safetensors",
        "effnet_size": SIZE,
        "high_sizes": [2 * SIZE],
        "model": {"width": 16, "heads": 2, "groups": 4, "timestep_channels": 8},
        **section,
    }
    plain = {"task": "high_res_guides", "output": output, "steps": 6, "batch_size": 4, "log_every": 1, "device": "cpu"}
    config = parse_config({**plain, "high_res_guides": whole}, SETTINGS, where="test", root=folder)
    return TASKS["high_res_guides"].task(config)


def test_batches_show_each_image_at_two_sizes(folder: Path) -> None:
    task = build(folder)
    batch = task.batch(0)
    assert (batch.low.shape, batch.high.shape) == ((4, 16, 2, 2), (4, 16, 4, 4))
    again = build(folder).batch(0)
    assert torch.equal(batch.high, again.high)
    assert torch.equal(batch.low, again.low)


def test_a_new_guide_adds_nothing(folder: Path) -> None:
    guides = build(folder).modules["high_res_guides"]
    stage_c: Any = small.part("stage_c")
    x, r = torch.randn(2, 16, 5, 4), torch.tensor([0.3, 0.9])
    config = stage_c.config
    text = torch.randn(2, 3, config.clip_text), torch.randn(2, 1, config.clip_text_pooled)
    given = x, r, *text, torch.zeros(2, 1, config.clip_img)
    _, features = stage_c.features(torch.randn(2, 16, 3, 2), r, *given[2:])
    assert isinstance(features, Features)
    assert isinstance(guides, HighResGuides)
    with torch.no_grad():
        found = stage_c(*given, guides=guides, features=features)
        assert relative_error(found, stage_c(*given)) < 1e-5


def test_it_trains_the_guides_alone_and_goes_on_from_a_file(folder: Path, tmp_path: Path) -> None:
    task = build(folder, str(tmp_path))
    before = {name: tensor.clone() for name, tensor in task.stage_c.state_dict().items()}
    fit(task, task.config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.stage_c.state_dict().items())
    path = tmp_path / "high_res_guides.safetensors"
    trained: Any = load_model(path, part="high_res_guides", dtype=torch.float32)
    assert trained.down[0].hr_norm.mapping.mapper.weight.abs().sum() > 0
    found = build(folder, start=str(path)).modules["high_res_guides"].state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": {"stage_c_width": 32, "width": 16, "heads": 2, "groups": 4}}, "stage_c_width is 32, Stage C's is"),
        ({"high_sizes": [100]}, "100 is not a multiple of 32"),
        ({"effnet_size": 1056}, "guides read at most 1024"),
        ({"model": {"width": 15}}, "width 15 cannot have"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder: Path, section: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        build(folder, **section)
