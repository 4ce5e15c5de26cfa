"""What `train lora FOLDER` makes of a folder of images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cascade import tiny
from cascade.errors import InvalidConfig
from cascade.pipelines import Parts
from cascade.training import SETTINGS, TASKS, parse_config
from cascade.training.class_images import make_class_images
from cascade.training.lora import LoraSettings
from cascade.training.needs import missing
from cascade.training.plain import (
    NETWORKS,
    PlainLora,
    plain_settings,
    prepare_images,
    with_token,
    without_token,
)


@pytest.mark.parametrize(
    ("caption", "with_it"),
    [
        ("a red [moon] on a white background", "a red [moon] on a white background"),
        ("a red moon on a white background", "a red [moon] on a white background"),
        ("two Moons", "two [moon]"),
        ("moonlight", "[moon], moonlight"),
        ("", "[moon]"),
    ],
)
def test_every_caption_has_the_token(caption: str, with_it: str) -> None:
    assert with_token(caption, "[moon]") == with_it


def test_captions_of_the_class_lack_the_token() -> None:
    assert without_token("a photo of [Owl] in the snow", "[owl]", "a barn owl") == "a photo of a barn owl in the snow"
    assert without_token("[owl], at dusk", "[owl]") == "at dusk"


def test_images_are_written_as_the_training_sees_them(tmp_path: Path) -> None:
    source, folder = tmp_path / "mine", tmp_path / "run"
    source.mkdir()
    for name in ("moon-blue_12.png", "moon_07.png", "zebra.png"):
        Image.new("RGB", (40, 64), "red").save(source / name)
    (source / "zebra.txt").write_text("a moon and a zebra 2\n", encoding="utf-8")
    captions = prepare_images(source, folder, 32, "[moon]")
    assert captions == ["[moon] blue", "[moon]", "a [moon] and a zebra 2"]
    assert [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))] == captions
    assert Image.open(folder / "0000.png").size == (32, 32)

    (source / "zebra.png").unlink()
    assert len(prepare_images(source, folder, 32, "[moon]")) == 2
    assert len(list(folder.glob("*.png"))) == 2
    with pytest.raises(InvalidConfig, match="no folder"):
        prepare_images(tmp_path / "run2", folder, 32, None)


def test_class_images_that_are_there_stay(tmp_path: Path) -> None:
    parts, prompts = Parts(tiny.parts()), ["a red circle", "a blue square", "a green star"]
    done: list[tuple[int, int]] = []
    make_class_images(parts, prompts[:1], tmp_path, size=64)
    first = (tmp_path / "0000.png").stat().st_mtime_ns
    make_class_images(parts, prompts, tmp_path, size=64, at_once=2, on_image=lambda *i: done.append(i))
    assert (tmp_path / "0000.png").stat().st_mtime_ns == first
    assert [(tmp_path / f"000{i}.txt").read_text(encoding="utf-8") for i in range(3)] == prompts
    assert done == [(3, 3)]


def test_missing_class_images_are_generated_for_a_settings_file(tmp_path: Path) -> None:
    files = {kind: str(tiny.path(kind)) for kind in ("stage_c", "text_encoder", "effnet", "stage_b", "stage_a")}
    section = {
        "images": {"source": "tiny", "count": 2, "seed": 1, "size": 64},
        "class_images": {"path": "class", "size": 64},
        "class_prompts": ["a red circle", "a blue square"],
        "class_count": 3,
        "cache": "cache",
        **files,
    }
    plain = {"task": "lora", "output": "run", "steps": 1, "batch_size": 1, "device": "cpu"}
    config = parse_config({**plain, "lora": section}, SETTINGS, where="test", root=tmp_path)
    assert missing(config) == []
    task = TASKS["lora"].task(config)
    assert sorted(path.name for path in (tmp_path / "class").glob("*.png")) == ["0000.png", "0001.png", "0002.png"]
    assert sorted(task.class_data.captions) == ["a blue square", "a red circle", "a red circle"]
    without = {key: value for key, value in section.items() if key not in ("stage_a", "stage_b")}
    config = parse_config({**plain, "lora": without}, SETTINGS, where="test", root=tmp_path)
    with pytest.raises(InvalidConfig, match="stage_b and stage_a are needed"):
        TASKS["lora"].task(config)


@pytest.mark.parametrize("token", [None, "[moon]"])
def test_settings_follow_from_the_size(tmp_path: Path, token: str | None) -> None:
    wanted = PlainLora(images=tmp_path, folder=tmp_path, name="moon", token=token, changes={"lora.rank": 2})
    values = plain_settings(wanted, {kind: tiny.path(kind) for kind in NETWORKS}, "cpu")
    config = parse_config(values, SETTINGS, where="here")
    settings: LoraSettings = config.settings
    assert config.learning_rate == 2e-3
    assert (settings.images.size, settings.rank, settings.class_images) == (256, 2, None)
    assert [each.text for each in settings.tokens or ()] == ([token] if token else [])
    assert settings.stage_c == tiny.path("stage_c")
