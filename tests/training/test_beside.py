"""What lies beside images: hints, masks of the loss, faces; and places that count more than others."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.checkpoints import save_model
from cascade.errors import InvalidConfig
from cascade.images import open_image
from cascade.training import SETTINGS, TASKS, fit, parse_config
from cascade.training.beside import EMBEDDING
from cascade.training.data import ImageSettings, importance, order_of, prepared
from tests import small

SIZE = 64
SHAPES = [(80, 64)] * 3 + [(64, 128)] * 3
FACE = {"box": [20, 16, 52, 48], "embedding": [1.0, *[0.0] * (EMBEDDING - 1)]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images of two shapes, each with everything beside it."""
    place = tmp_path / "images"
    place.mkdir()
    for number, size in enumerate(SHAPES):
        random = np.random.default_rng(number)
        pixels = random.integers(40 * number, 40 * number + 16, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
        Image.fromarray(255 - pixels).save(place / f"{number}.hint.png")
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[:, size[0] // 2 :] = 255
        Image.fromarray(mask).save(place / f"{number}.mask.png")
        (place / f"{number}.txt").write_text(f"image {number}", encoding="utf-8")
        (place / f"{number}.faces.json").write_text(json.dumps([FACE]), encoding="utf-8")
    return place


def as_tar(place: Path) -> Path:
    path = place.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        for file in sorted(place.iterdir()):
            tar.add(file, file.name)
    return path


def as_list(place: Path) -> Path:
    path = place.parent / "images.jsonl"
    lines = [
        {"file_name": f"images/{n}.png", "caption": f"image {n}", "hint": f"images/{n}.hint.png"}
        | {"mask": f"images/{n}.mask.png", "faces": f"images/{n}.faces.json"}
        for n in range(len(SHAPES))
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    for kind in ("stage_c", "text_encoder", "effnet"):
        save_model(small.part(kind), tmp_path / f"{kind}.safetensors")
    return tmp_path


SIMPLE = {"blocks": [0, 2], "backbone": "simple"}
STAGES = [{"fused": True, "expansion": 1, "stride": 2, "width": 8, "depth": 1}] * 4
EFFNET = {"blocks": [0, 2], "features": 8, "stem": 4, "stages": STAGES}


def control(root: Path, images: dict[str, Any], **section: Any) -> Any:
    whole = {
        "images": {"source": "folder", "size": SIZE, **images},
        "cache": "cache",
        **{kind: f"{kind}.safetensors" for kind in ("stage_c", "text_encoder", "effnet")},
        "effnet_size": SIZE,
        "hint_size": SIZE,
        **section,
    }
    plain = {"task": "controlnet", "output": "run", "steps": 2, "batch_size": 2, "log_every": 1, "device": "cpu"}
    config = parse_config({**plain, "controlnet": whole}, SETTINGS, where="test", root=root)
    return TASKS["controlnet"].task(config)


@pytest.mark.parametrize("form", ["folder", "tar", "list", "stream"])
def test_a_hint_beside_the_image_is_cut_as_the_image_is(networks: Path, images: Path, form: str) -> None:
    path = {"folder": images, "tar": as_tar(images), "list": as_list(images), "stream": images}[form]
    ratios = {"aspect_ratios": ["1/1", "2/1"], "stream": form == "stream", "shuffle": 1}
    task = control(networks, {"path": str(path), "crop": "random", **ratios}, filter="stored", model=EFFNET)
    shapes = set()
    for index in range(4):
        hints = task.batch(index).hints
        rows = task.order.rows(index, 2)
        found = task.data.texts(rows, (0,))
        shapes.add(tuple(hints.shape[2:]))
        for text, hint in zip(found, hints, strict=True):
            with open_image((images / f"{text.split()[1]}.png").read_bytes()) as image:
                mean = np.asarray(image.convert("RGB")).mean() / 255
            # The images differ by 40 of 255, and the hint is the image turned.
            assert abs(1 - mean - float(hint.mean())) < 0.05
    assert shapes == {(64, 64), (64, 32)}
    assert fit(task, task.config).complete


def test_a_hint_shows_the_part_that_the_image_shows(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 160, 3), dtype=np.uint8)
    for name in ("a.png", "a.hint.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    settings = ImageSettings(path=str(tmp_path), size=SIZE, crop="random")

    from cascade.training.beside import Beside
    from cascade.training.data import open_images

    source: Any = open_images(settings, beside=Beside(hint=SIZE))
    [seen] = [seen for part in source.parts() for seen in source.read(part)]
    assert np.array_equal(seen.pixels, seen.beside["hint"])
    assert 0 < seen.cut < 1


def test_images_without_their_hint_are_left_out_and_named(networks: Path, images: Path) -> None:
    (images / "1.hint.png").unlink()
    Image.new("RGB", (30, 90)).save(images / "2.hint.png")
    (images / "0.png").unlink()
    task = control(networks, {"path": str(images)}, filter="stored", filter_params={"channels": 1}, model=EFFNET)
    assert task.batch(0).hints.shape == (2, 1, SIZE, SIZE)
    told = "\n".join(task.problems)
    assert "left out 1.png: it has no hint" in told
    assert "left out 2.png: its hint has 30 x 90 pixels" in told
    assert "0.hint.png: there is no image 0 beside it" in told


def test_faces_are_placed_where_they_are_shown(networks: Path, images: Path) -> None:
    (images / "3.faces.json").write_text("[]", encoding="utf-8")
    (images / "4.faces.json").write_text('[{"box": [1]}]', encoding="utf-8")
    section = {"filter": "identity", "model": SIMPLE, "hint_size": 256}
    task = control(networks, {"path": str(images)}, filter_params={"p_drop": 0.0, "p_full": 0.0}, **section)
    assert "left out 4.png: its faces" in "\n".join(task.problems)
    found = {}
    for index in range(6):
        rows = task.order.rows(index, 2)
        for text, hint in zip(task.data.texts(rows, (0,)), task.batch(index).hints, strict=True):
            found[text] = hint
    assert found["image 0"].shape == (EMBEDDING, 8, 8)
    assert not found["image 3"].any()
    # The middle 64 of 80 pixels, 4 times as large: the box is 12 to 44 of 64 across, 16 to 48 down.
    where = found["image 0"][0].nonzero()
    assert where.min(dim=0).values.tolist() == [2, 2]
    assert where.max(dim=0).values.tolist() == [5, 5]
    assert fit(task, task.config).complete
    whole = control(networks, {"path": str(images)}, filter_params={"p_drop": 0.0, "p_full": 1.0}, **section)
    assert any(bool((hint[0] == 1).all()) for hint in whole.batch(0).hints)
    none = control(networks, {"path": str(images)}, filter_params={"p_drop": 1.0}, **section)
    assert not none.batch(0).hints.any()


def test_what_is_outside_the_mask_is_not_learned(networks: Path, images: Path) -> None:
    settings = {"path": str(images), "masks": True}
    task = control(networks, settings, filter="canny", model=EFFNET)
    batch = task.batch(0)
    assert batch.importance.shape == (2, 1, 2, 2)
    assert bool((batch.importance[..., 0] == 0).all())
    assert bool((batch.importance[..., 1] == 1).all())

    def loss(importance: torch.Tensor | None) -> float:
        return task.loss(batch._replace(importance=importance), torch.Generator().manual_seed(0))[0].item()

    assert loss(torch.zeros_like(batch.importance)) == 0 < loss(batch.importance) < loss(None)
    assert loss(torch.ones_like(batch.importance)) == pytest.approx(loss(None), rel=1e-5)
    (images / "0.mask.png").unlink()
    again = control(networks, settings, filter="canny", model=EFFNET)
    rows = again.data.first(6)
    place = again.data.texts(rows, (0,)).index("image 0")
    assert bool((importance(again.data, rows, again.data.take("latents", rows))[place] == 1).all())


def test_a_place_can_be_seen_more_often_and_count_more(tmp_path: Path, images: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 0, 0)).save(other / f"other_{number}.png")
    config = parse_config(
        {"task": "lora", "output": "run", "steps": 1, "batch_size": 4, "lora": {}}
        | {"lora": {"images": {}, "cache": "c", "stage_c": "c", "text_encoder": "t", "effnet": "e"}},
        SETTINGS,
        where="test",
    )

    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"latents": np.zeros((len(pixels), 16, 2, 2), np.float16)}

    for stream in (False, True):
        settings = ImageSettings(
            path=[{"path": str(other), "repeats": 3, "loss_weight": 0.5}, str(images)],  # type: ignore[list-item]
            size=SIZE,
            stream=stream,
            shuffle=2,
        )
        data = prepared(tmp_path / "cache", "latents", settings, compute)
        order = order_of(data, config)
        counts: dict[str, int] = {}
        for index in range(3):  # 2 images 3 times, 6 once: 12
            rows = order.rows(index, 4)
            weights = importance(data, rows, torch.zeros(4, 16, 2, 2))
            for text, weight in zip(data.texts(rows, (0,)), weights.tolist(), strict=True):
                counts[text] = counts.get(text, 0) + 1
                assert weight == (0.5 if text.startswith("other") else 1.0)
        assert counts == {"other 0": 3, "other 1": 3, **{f"image {n}": 1 for n in range(6)}}


def test_trainings_that_cannot_weight_say_so(tmp_path: Path, images: Path) -> None:
    for asked, word in (({"masks": True}, "masks"), ({"path": [{"path": "images", "repeats": 2}]}, "repeats")):
        section = {"images": {"path": "images", "size": SIZE, **asked}, "cache": "cache", "crop": 32}
        section["model"] = small.CONFIGS["stage_a"].to_dict()
        plain = {"task": "stage_a", "output": "run", "steps": 1, "batch_size": 1}
        config = parse_config({**plain, "stage_a": section}, SETTINGS, where="test", root=tmp_path)
        with pytest.raises(InvalidConfig, match=f"images: {word}.* is not possible in this training"):
            TASKS["stage_a"].task(config)
