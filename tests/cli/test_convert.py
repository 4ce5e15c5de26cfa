from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cascade.checkpoints import inspect_file, load_model
from cascade.checkpoints.network_kinds import KINDS
from cascade.checkpoints.saving import LAYOUTS
from cascade.cli import convert, main
from tests.checkpoints.files import comfyui_state, network, released_state, same_weights, save


def test_a_part_of_a_merged_file(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged.safetensors", comfyui_state("stage_b", "stage_a"))
    target = tmp_path / "stage_a.safetensors"
    assert main(["convert", str(merged), "--part", "stage_a", str(target)]) == 0
    assert same_weights(load_model(target), network("stage_a"))


def test_types_and_layouts(tmp_path: Path) -> None:
    source = save(tmp_path / "file.safetensors", released_state("stage_c"))
    assert main(["convert", str(source), str(tmp_path / "folder"), "--layout", "diffusers", "--dtype", "float16"]) == 0
    found = inspect_file(tmp_path / "folder")
    assert (found.layout, found.dtype, found.kind) == ("diffusers", "float16", "stage_c")


def test_files_are_merged(tmp_path: Path) -> None:
    files = [str(save(tmp_path / f"{kind}.safetensors", released_state(kind))) for kind in ("stage_b", "stage_a")]
    assert main(["convert", "--layout", "comfyui", *files, str(tmp_path / "merged.safetensors")]) == 0
    assert {part.kind for part in inspect_file(tmp_path / "merged.safetensors").parts} == {"stage_b", "stage_a"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing.safetensors", "target"], "nothing.safetensors: there is no such file or folder"),
        (["source", "source"], "source: source and target are the same; write to another name"),
        (["source", "target", "--part", "stage_z"], "--part must be one of stage_c, stage_b"),
        (
            ["source", "target", "--part", "stage_c"],
            "this is Stage A, custom, float32; it belongs in vae. Wanted",
        ),
        (["source", "source", "target"], "cascade cannot hold stage_a, stage_a together"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("source"), released_state("stage_a"))
    assert main(["convert", *arguments]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert text in last
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_ctrl_c_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "source.safetensors", released_state("stage_a"))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cascade.checkpoints.saving.read_piece", interrupted)
    assert main(["convert", str(source), str(tmp_path / "target.safetensors")]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_choices_are_the_librarys() -> None:
    """Spelled out in the command, which must be quick to import."""
    assert convert.LAYOUTS == LAYOUTS
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in convert.DTYPES)
    assert "stage_c" in KINDS
