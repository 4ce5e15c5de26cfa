"""`python -m cascade train lora FOLDER`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cascade.adapters import read_lora
from cascade.cli import main
from cascade.tiny import hearts
from cascade.training.metrics import read_metrics


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three drawings, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "drawings"
    place.mkdir()
    images, captions = hearts.batch(1, 3)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        Image.fromarray(image).save(place / f"a red heart {number}.png")
        if number:
            (place / f"a red heart {number}.txt").write_text(caption, encoding="utf-8")
    return place


def test_from_a_folder_to_a_lora(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "lora", str(folder), "--token", "[heart]", "-o", "mine.safetensors", "--class-images", "2"]
    assert main([*command, "--steps", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "mine.safetensors"
    run = tmp_path / "runs" / "mine"
    assert {"settings.yaml", "loss.png", "samples"} <= {path.name for path in run.iterdir()}
    assert (run / "images" / "0000.txt").read_text(encoding="utf-8") == "a red [heart]"
    assert len(list((run / "class").glob("*.png"))) == 2
    lora = read_lora(tmp_path / "mine.safetensors")
    assert [token.text for token in lora.tokens] == ["[heart]"]
    prompt = re.search(r'generate "(.*)" --lora mine.safetensors', err)
    assert prompt is not None
    assert "[heart]" in prompt[1]

    before = read_metrics(run)
    assert main([*command, "--steps", "3"]) == 0
    assert read_metrics(run)[: len(before)] == before  # it went on


def test_the_settings_file_trains_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "lora", str(folder), "--steps", "2", "--folder", "here", "--set", "lora.rank=2"]) == 0
    assert capsys.readouterr().out.strip() == "drawings.safetensors"
    settings = yaml.safe_load((tmp_path / "here" / "settings.yaml").read_text(encoding="utf-8"))
    assert settings["lora"]["rank"] == 2
    assert settings["lora"]["class_images"] is None  # a style has none
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump({**settings, "output": str(tmp_path / "other")}), encoding="utf-8")
    assert main(["train", str(copy)]) == 0
    one, other = (read_lora(tmp_path / place) for place in ("drawings.safetensors", "other/drawings.safetensors"))
    assert one.changes["stage_c"].keys() == other.changes["stage_c"].keys()
    assert one.ranks == other.ranks == (2,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lora"], "needs a folder"),
        (["lora", "missing"], "no folder"),
        (["lora", "drawings", "--token", "moon"], "ordinary word"),
        (["lora", "drawings", "-o", "moon.png"], "safetensors"),
        (["lora", "drawings", "-o", "none/moon.safetensors"], "no folder"),
        (["lora", "drawings", "--set", "lora.rnak=2"], "'rank'"),
        (["tiny", "drawings"], "only `train lora`"),
        (["tiny", "--steps", "2"], "--set"),
    ],
)
def test_mistakes_are_told_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["train", *arguments]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert words in message
