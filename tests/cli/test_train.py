"""`python -m cascade train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascade import tiny
from cascade.adapters import read_lora
from cascade.checkpoints import load_model
from cascade.cli import main
from cascade.models import StageA
from cascade.tiny import train as recipe
from cascade.tiny.hearts import TOKEN


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "a.json"
    section = {
        "images": {"source": "tiny", "count": 4, "size": 32},
        "cache": "cache",
        "model": {"width": 8, "bottleneck_blocks": 1, "codebook_size": 4},
        "crop": 32,
    }
    data = {"task": "stage_a", "output": "out", "steps": 3, "batch_size": 2, "device": "cpu", "stage_a": section}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_one_training(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(settings), "--folder", str(tmp_path), "--set", "steps=2"]) == 0
    out, err = capsys.readouterr()
    assert "complete at step 2" in out
    assert "stage_a" in err
    trained = load_model(tmp_path / "out" / "stage_a.safetensors")
    assert isinstance(trained, StageA)
    assert trained.config.width == 8
    assert main(["train", str(settings), "--folder", str(tmp_path)]) == 0
    assert "complete at step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "stpes=2"], "'steps'"),
        (["--set", "steps"], "KEY=VALUE"),
        (["--set", "steps.x=1"], "which has no keys"),
        (["--set", "steps=!!bool maybe"], "--set steps: not valid"),
        (["--set", "steps=[" + "[" * 5000], "--set steps: not valid"),
        (["--set", "stage_a.crop=34"], "multiple of 4"),
    ],
)
def test_mistakes_in_one_line(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["train", str(settings), "--folder", str(tmp_path), *arguments]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert words in message


def test_a_part_that_the_recipe_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "--part", "stage_d", "--folder", str(tmp_path)]) == 1
    assert "no part 'stage_d'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_smoke_run_makes_all_files(tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "weights"
    assert main(["train", "tiny", "--smoke", "--folder", str(folder), "--install", str(target)]) == 0
    kinds = ["effnet", "image_encoder", "previewer", "stage_a", "stage_b", "stage_c", "text_encoder"]
    controls = [*tiny.CONTROLS.values(), tiny.GUIDES, tiny.PRIOR, tiny.IP_ADAPTER]
    assert sorted(p.stem for p in target.iterdir()) == sorted(
        [*kinds, *controls, *tiny.TURBO, tiny.INSTRUCT, "lora_heart"]
    )
    for name in [*kinds, *controls]:
        made, shipped = (load_model(path) for path in (target / f"{name}.safetensors", tiny.path(name)))
        assert type(made) is type(shipped), name
        assert all(value.isfinite().all() for value in made.state_dict().values()), name
    for kind in [*kinds, *controls, *tiny.TURBO, tiny.INSTRUCT, "lora"]:
        trained = recipe.trained_or_shipped(kind, folder)
        assert trained.is_relative_to(folder)
        assert trained.read_bytes() == (target / trained.name).read_bytes(), "installed is what was trained last"


@pytest.mark.skipif(not tiny.path("stage_c").exists(), reason="the tiny cascade's weights are not here")
def test_a_part_alone_builds_on_the_shipped_networks(tmp_path: Path) -> None:
    """The command of docs/lora.md in a folder where nothing has been trained yet."""
    config = str(recipe.RECIPE / "lora_heart.yaml")
    changes = ["--set", "steps=1", "--set", "lora.class_images.count=4", "--set", "lora.images.count=4"]
    assert main(["train", config, "--folder", str(tmp_path), *changes]) == 0
    assert [token.text for token in read_lora(tmp_path / "lora_heart" / "lora_heart.safetensors").tokens] == [TOKEN]


def test_the_recipe_fits_the_repository() -> None:
    """All its files are read and checked as they are."""
    for part in recipe.PARTS:
        for smoke in (False, True):
            assert recipe.part_config(part, Path("run"), smoke=smoke).output == Path("run") / part
