"""The training of an IP-Adapter: that it learns what an image shows, that the rest stays, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade.checkpoints import load_model, save_model
from cascade.errors import InvalidConfig
from cascade.tiny import ip_adapter_images  # registers the images
from cascade.tiny import train as train
from cascade.training import SETTINGS, TASKS, fit, parse_config
from cascade.training.metrics import read_metrics
from tests import small

SIZE = 64
MODEL = {"tokens": 4, "width": 16, "heads": 2, "depth": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ip_adapter")
    for kind in ("stage_c", "text_encoder", "image_encoder", "effnet"):
        save_model(small.part(kind), folder / f"{kind}.safetensors")
    return folder


def build(folder: Path, output: str = "none", changes: dict[str, Any] | None = None, **section: Any) -> Any:
    whole = {
        "images": {"source": "tiny_ip_adapter", "count": 12, "seed": 1, "size": SIZE},
        "cache": "cache",
        **{kind: f"{kind}.safetensors" for kind in ("stage_c", "text_encoder", "image_encoder", "effnet")},
        "effnet_size": SIZE,
        "model": MODEL,
        **section,
    }
    plain = {"task": "ip_adapter", "output": output, "steps": 4, "batch_size": 4, "log_every": 1, "device": "cpu"}
    config = parse_config({**plain, **(changes or {}), "ip_adapter": whole}, SETTINGS, where="test", root=folder)
    return TASKS["ip_adapter"].task(config)


def test_it_learns_and_leaves_the_other_networks_alone(folder: Path, tmp_path: Path) -> None:
    changes = {"steps": 80, "batch_size": 12, "learning_rate": 1e-2}
    task = build(folder, str(tmp_path), changes)
    nets = {"stage_c": task.stage_c, "image_encoder": task.vision, "text_encoder": task.text.model}
    before = {name: {key: x.clone() for key, x in net.state_dict().items()} for name, net in nets.items()}
    assert fit(task, task.config).complete
    for name, net in nets.items():
        assert all(torch.equal(value, before[name][key]) for key, value in net.state_dict().items())
    losses = [each["mse"] for each in read_metrics(tmp_path)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    assert load_model(tmp_path / "ip_adapter.safetensors").config == task.modules["ip_adapter"].config


def test_the_first_of_a_pair_is_shown_and_the_second_is_made(folder: Path) -> None:
    task, single = build(folder), build(folder, images={"source": "tiny", "count": 12, "size": SIZE})
    pixels, captions = ip_adapter_images.batch(1, 12, size=SIZE)
    batch = task.batch(0)
    rows = task.order.rows(0, task.count)
    first = torch.from_numpy(pixels[rows][:, :, :SIZE]).movedim(-1, 1).float()
    second = torch.from_numpy(pixels[rows][:, :, SIZE:]).movedim(-1, 1).float()
    small_images = torch.nn.functional.interpolate(255 * batch.images, (SIZE, SIZE), mode="bilinear")
    assert (small_images - first).abs().mean() < (small_images - second).abs().mean() / 2
    assert list(batch.captions) == [captions[row] for row in rows]
    assert single.batch(0).latents.shape == batch.latents.shape


def test_an_adapter_begins_with_the_network_as_it_is_and_goes_on_from_a_file(folder: Path, tmp_path: Path) -> None:
    task = build(folder)
    assert not any(to_v.weight.any() for to_v in task.modules["ip_adapter"].to_v)
    save_model(small.ip_adapter(), tmp_path / "start.safetensors")
    config = small.ip_adapter().config
    model = {name: getattr(config, name) for name in MODEL}
    further = build(folder, model=model, start=str(tmp_path / "start.safetensors")).modules["ip_adapter"]
    assert torch.equal(further.to_v[0].weight, small.ip_adapter().to_v[0].weight)
    with pytest.raises(InvalidConfig, match="has other sizes than model"):
        build(folder, start=str(tmp_path / "start.safetensors"))


def test_captions_leave_out_what_is_shown(folder: Path) -> None:
    task = build(folder, shown_as="a shape", drop_caption=0.5, changes={"batch_size": 12})
    batch = task.batch(0)
    places = [caption.rpartition(", ")[2] for caption in batch.captions]
    assert all(text in ("", f"a shape, {place}") for text, place in zip(batch.texts, places, strict=True))
    assert len({text == "" for text in batch.texts}) == 2
    assert all(text == caption for text, caption in zip(*build(folder, drop_caption=0).batch(0)[2:], strict=True))


def test_it_imitates_the_rest_of_the_caption(folder: Path, tmp_path: Path) -> None:
    changes = {"steps": 60, "batch_size": 12, "learning_rate": 1e-2}
    task = build(folder, str(tmp_path), changes, shown_as="a shape", imitate=True, drop_caption=0)
    fit(task, task.config)
    losses = [each["loss"] for each in read_metrics(tmp_path)]
    assert np.mean(losses[-10:]) < 0.9 * losses[0]


def test_bad_settings(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match="imitate needs shown_as"):
        build(folder, imitate=True)
    with pytest.raises(InvalidConfig, match="blocks follow from the files"):
        build(folder, model={"blocks": [16]})
    with pytest.raises(InvalidConfig, match="cannot have 3 heads"):
        build(folder, model={**MODEL, "heads": 3})
