"""Priors: what they are trained on, that they learn which embedding belongs to a text, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade.checkpoints import inspect_file, load_model, save_model
from cascade.errors import InvalidConfig
from cascade.training import SETTINGS, TASKS, fit, parse_config
from cascade.training.metrics import read_metrics
from tests import small

MODEL = {"width": 16, "heads": 2, "depth": 1, "timestep_channels": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    for kind in ("text_encoder", "image_encoder"):
        save_model(small.part(kind), folder / f"{kind}.safetensors")
    return folder


def build(folder: Path, output: str = "none", changes: dict[str, Any] | None = None, **section: Any) -> Any:
    whole = {
        "images": {"source": "tiny", "count": 12, "seed": 1, "size": 64},
        "cache": "cache",
        "text_encoder": "text_encoder.safetensors",
        "image_encoder": "image_encoder.safetensors",
        "model": MODEL,
        "repeats": 2,
        **section,
    }
    plain = {"task": "prior", "output": output, "steps": 4, "batch_size": 8, "log_every": 1, "device": "cpu"}
    config = parse_config({**plain, **(changes or {}), "prior": whole}, SETTINGS, where="test", root=folder)
    return TASKS["prior"].task(config)


def test_it_learns_and_its_file_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    task = build(folder, str(tmp_path), {"steps": 80, "learning_rate": 1e-2, "ema": 0.9})
    assert fit(task, task.config).complete
    losses = [line["loss"] for line in read_metrics(tmp_path)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    path = tmp_path / "prior.safetensors"
    found = inspect_file(path)
    assert (found.kind, found.variant, found.folder) == ("prior", "Prior, custom", "model_patches")
    assert load_model(path, dtype=torch.float32).config == task.modules["prior"].config


def test_the_network_sees_embeddings_of_one_size(folder: Path) -> None:
    task = build(folder)
    net, embeddings = task.modules["prior"], task.data.take("embeddings", np.arange(12)).float()
    normal = net.normalized(embeddings)
    assert torch.allclose(normal.mean(dim=0), torch.zeros(small.IMAGE), atol=1e-4)
    assert torch.allclose(normal.std(dim=0, unbiased=False), torch.ones(small.IMAGE), atol=1e-4)
    assert torch.allclose(net.embeddings(normal), embeddings, atol=1e-5)


def test_it_goes_on_from_a_file(folder: Path, tmp_path: Path) -> None:
    first = build(folder, str(tmp_path), {"export_dtype": "float32", "ema": 0})
    fit(first, first.config)
    path = str(tmp_path / "prior.safetensors")
    found, expected = build(folder, start=path).modules["prior"].state_dict(), first.modules["prior"].state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(InvalidConfig, match="has other sizes than model"):
        build(folder, start=path, model={**MODEL, "depth": 2})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": {"clip_img": 9}}, "clip_img follows from the encoders"),
        ({"model": {"width": 15}}, "width 15 cannot have"),
        ({"repeats": 3}, "repeats 3 must divide batch_size 8"),
        ({"images": {"source": "tiny", "count": 4, "size": 64, "stream": True}}, "stream is not possible"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder: Path, section: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        build(folder, **section)
