"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade.adapters import Lora, LowRank, save_lora
from cascade.checkpoints import save_model
from cascade.errors import InvalidName
from cascade.files import check_name, remove_abandoned, write_atomically
from cascade.training.state import save_state
from tests.checkpoints.files import network

LORA = Lora({"stage_c": {"clip_img_mapper.weight": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)}})
WRITERS: dict[str, Callable[[Path], None]] = {
    "plain": lambda path: write_atomically(path, lambda temporary: temporary.write_bytes(b"new")),
    "network": lambda path: save_model(network("previewer"), path),
    "lora": lambda path: save_lora(LORA, path),
    "state": lambda path: save_state(path.parent, {"step": 1}),
}


@pytest.mark.parametrize("folder", [False, True])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def write(path: Path) -> None:
        if folder:
            path.mkdir()
        (path / "file" if folder else path).write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, write)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"old"


def test_folders_are_made_and_an_empty_one_is_replaced(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.mkdir()
        (path / "file").write_bytes(b"new")

    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    write_atomically(target, write)
    write_atomically(tmp_path / "c" / "d", write)
    with pytest.raises(OSError, match="not empty"):
        write_atomically(target, write)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a", "a/b", "a/b/file", "c", "c/d", "c/d/file"
    ]  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="file modes and symbolic links")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_has_the_usual_mode_and_takes_the_place_of_a_link(tmp_path: Path, writer: str) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "state.pt"
    elsewhere.write_bytes(b"old")
    target.symlink_to(elsewhere)
    mask = os.umask(0o027)
    try:
        WRITERS[writer](target)
    finally:
        os.umask(mask)
    assert not target.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert elsewhere.read_bytes() == b"old"


def test_what_a_killed_process_of_the_same_number_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".target.{os.getpid()}.tmp").mkdir()
    write_atomically(tmp_path / "target", lambda path: path.write_bytes(b"new"))
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.skipif(os.name != "posix", reason="asks whether a process lives")
def test_what_killed_processes_were_writing_is_removed(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".state.pt.99999999.tmp", tmp_path / f".state.pt.{os.getpid()}.tmp"
    dead.mkdir()
    (dead / "file").write_bytes(b"")
    alive.write_bytes(b"")
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [alive]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\0b", "no control characters"),
        ("a\nb", "no control characters"),
        ("\ud800", "Unicode text"),
        ("caf\udce9/x", "Unicode text"),
        ("n" * 201, "at most 200 bytes, this one 201"),
        ("é" * 101 + "/x", "at most 200 bytes, this one 202"),
        ("d/" * 2000 + "n", "the path has more than"),
    ],
)
def test_names_that_no_file_can_have(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InvalidName, match=reason) as error:
        check_name(tmp_path / name)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NUL", "a device of Windows"),
        ("aux.safetensors", "a device of Windows"),
        ("sub/Com1 .tar.gz/x", "a device of Windows"),
        ("lpt²", "a device of Windows"),
        ("owl.", "end in a dot"),
        ("owl /x", "end in a dot or a space"),
        ("what?", "no names with \\?"),
        ("a:b|c", "no names with : \\|"),
        ("a\\b", "no names with"),
    ],
)
def test_names_that_windows_does_not_have(name: str, reason: str) -> None:
    with pytest.raises(InvalidName, match=reason):
        check_name(Path(name), windows=True)


@pytest.mark.parametrize("name", ["owl", "sub/owl_1.safetensors", "../owl", "日本", "n" * 200, "console", ".hidden"])
def test_names_that_files_can_have(tmp_path: Path, name: str) -> None:
    check_name(Path(name), windows=True)
    check_name(tmp_path / name)
    longest = tmp_path / "d" / name
    write_atomically(longest, lambda path: path.write_text("x", encoding="utf-8"))
    assert longest.read_text(encoding="utf-8") == "x"
