"""Instruct networks: that they learn, that Stage C stays as it is, and edits of one's own to learn from."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.adapters import read_instruct
from cascade.checkpoints import save_model
from cascade.errors import InvalidConfig
from cascade.models import Previewer, PreviewerConfig, initialize
from cascade.training import SETTINGS, TASKS, fit, parse_config
from cascade.training.folders import FolderEdits
from cascade.training.metrics import read_metrics
from tests import small

MODEL = {"blocks": [0, 1, 2, 3], "backbone": "large", "inside": [16, 8], "depth": 1, "features": 8}
SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instruct")
    for kind in ("stage_c", "text_encoder", "effnet"):
        save_model(small.part(kind), folder / f"{kind}.safetensors")
    save_model(initialize(Previewer(PreviewerConfig(width=8))).eval(), folder / "previewer.safetensors")
    return folder


def build(folder: Path, output: str = "none", changes: dict[str, Any] | None = None, **section: Any) -> Any:
    whole = {
        "images": {"source": "tiny_instructions", "count": 12, "seed": 1, "size": SIZE},
        "cache": "cache",
        "stage_c": "stage_c.safetensors",
        "text_encoder": "text_encoder.safetensors",
        "effnet": "effnet.safetensors",
        "previewer": "previewer.safetensors",
        "effnet_size": SIZE,
        "sample_steps": 2,
        "model": MODEL,
        "rank": 2,
        **section,
    }
    plain = {"task": "instruct", "output": output, "steps": 4, "batch_size": 4, "log_every": 1, "device": "cpu"}
    config = parse_config({**plain, **(changes or {}), "instruct": whole}, SETTINGS, where="test", root=folder)
    return TASKS["instruct"].task(config)


def test_it_trains_and_leaves_stage_c_alone(folder: Path, tmp_path: Path) -> None:
    task = build(folder, str(tmp_path), {"sample_every": 4})
    before = {key: value.clone() for key, value in task.stage_c.state_dict().items()}
    assert fit(task, task.config).complete
    assert all(torch.equal(value, before[key]) for key, value in task.stage_c.state_dict().items())
    assert len(list((tmp_path / "samples").iterdir())) == 1
    found = read_instruct(tmp_path / "instruct.safetensors")
    assert found.net.config == task.modules["controlnet"].config
    assert any(bool(change.up.any()) for change in found.lora.changes["stage_c"].values())
    assert all(bool(projection[2].weight.any()) for projection in found.net.projections)


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    """The image before tells most of the image after."""
    changes = {"steps": 60, "batch_size": 12, "learning_rate": 1e-2, "warmup": 0}
    task = build(folder, str(tmp_path), changes, target_modules=["all"], rank=8, drop_source=0, previewer=None)
    fit(task, task.config)
    losses = [each["mse"] for each in read_metrics(tmp_path)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_instructions_and_images_are_left_out_independently(folder: Path) -> None:
    task = build(folder, drop_instruction=0.5, drop_source=0.5, changes={"batch_size": 12})
    empty = task.ids[-1]
    kinds = {
        (bool(torch.equal(ids, empty)), bool(shown))
        for i in range(8)
        for ids, shown in zip(task.batch(i).ids, task.batch(i).shown, strict=True)
    }
    assert len(kinds) == 4


def test_single_images_are_no_edits(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match="the source tiny has single images; edits are needed"):
        build(folder, images={"source": "tiny", "count": 2, "size": SIZE})


def test_a_controlnet_that_does_not_fit(folder: Path) -> None:
    for model in ({"in_channels": 4}, {"width": 8}, {"backbone": "effnet"}):
        with pytest.raises(InvalidConfig, match="it reads latents of 16 channels"):
            build(folder, model=model)


def png(color: str, size: tuple[int, int] = (40, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


EDIT = {"owl.source.png": png("red"), "owl.target.png": png("green"), "owl.txt": b"make it\ngreen"}


def edits(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def check(found: FolderEdits) -> None:
    images, texts = found.read(0, len(found))
    assert images.shape == (1, 32, 64, 3)
    assert texts == ["make it green"]
    assert images[0, 5, 5].tolist() == [255, 0, 0]
    assert images[0, 5, 60].tolist() == [0, 128, 0]


def test_edits_of_a_folder(tmp_path: Path) -> None:
    check(FolderEdits(edits(tmp_path, EDIT), 32))


def test_edits_of_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "edits.tar", "w") as tar:
        for name, data in EDIT.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    check(FolderEdits(tmp_path / "edits.tar", 32))


def test_edits_of_several_folders_of_the_same_names(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
        edits(place, EDIT)
    (places[1] / "owl.target.png").write_bytes(png("blue"))
    images, texts = FolderEdits([str(tmp_path / "{a,b}")], 32).read(0, 2)
    assert len(texts) == 2
    assert images[:, 5, 60].tolist() == [[0, 128, 0], [0, 0, 255]]


def test_a_tar_of_edits_that_ends_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "edits.tar").write_bytes(b"owl" * 400)
    with pytest.raises(InvalidConfig, match=r"edits\.tar: .*an edit is three files"):
        FolderEdits(edits(tmp_path, EDIT), 32)


def test_a_training_of_ones_own_edits(folder: Path, tmp_path: Path) -> None:
    path = edits(tmp_path, {**EDIT, **{name.replace("owl", "cat"): data for name, data in EDIT.items()}})
    task = build(folder, images={"source": "edits", "path": str(path), "size": SIZE})
    assert list(task.data.captions) == ["make it green"] * 2
    assert not torch.equal(task.batch(0).latents, task.batch(0).sources)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no edits there; an edit is three files"),
        ({"owl.png": png("red")}, "no edits there"),
        ({**EDIT, "owl.txt": b"  "}, "owl lacks its instruction"),
        ({name: data for name, data in EDIT.items() if "source" not in name}, "owl lacks its image .source"),
        ({"owl.txt": b"make it green"}, "owl lacks its image .source and its image .target"),
        ({**EDIT, "owl.target.png": b"no image"}, "1 of 1 edits cannot be used: owl: "),
    ],
)
def test_edits_that_are_not_complete(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message.replace(".", r"\.")):
        FolderEdits(edits(tmp_path, files), 32)


def test_a_path_is_needed(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match="the source edits needs a path"):
        build(folder, images={"source": "edits", "size": SIZE})
