"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade.adapters import Lora, LowRank, read_lora, save_lora
from cascade.checkpoints import load_model, save_model
from cascade.errors import InvalidName
from cascade.files import check_name, remove_abandoned, write_atomically
from cascade.training.state import save_state
from tests.checkpoints.files import network, released_state, same_weights

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
@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path: Path, writer: str) -> None:
    target, other = tmp_path / "state.pt", tmp_path / ".notes.99999999.tmp"
    other.write_bytes(b"of another program")
    (tmp_path / ".state.pt.99999999.tmp").write_bytes(b"half")
    WRITERS[writer](target)
    assert sorted(tmp_path.iterdir()) == [other, target]


@pytest.mark.parametrize("number", ["99999999999999999999", "²", "٣", "-1", "0"])
def test_a_number_that_no_process_has_is_no_obstacle(number: str, tmp_path: Path) -> None:
    other = tmp_path / f".state.pt.{number}.tmp"
    other.write_bytes(b"of another program")
    write_atomically(tmp_path / "state.pt", lambda path: path.write_bytes(b"new"))
    assert other.read_bytes() == b"of another program"


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_pipe_is_not_replaced(tmp_path: Path, writer: str) -> None:
    target = tmp_path / "state.pt"
    os.mkfifo(target)
    with pytest.raises(OSError, match="a pipe or a device, not a file"):
        WRITERS[writer](target)
    assert target.is_fifo()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_a_link_in_the_place_of_the_temporary_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"old")
    (tmp_path / f".target.{os.getpid()}.tmp").symlink_to(elsewhere)
    write_atomically(tmp_path / "target", lambda path: path.write_bytes(b"new"))
    assert (elsewhere / "file").read_bytes() == b"old"
    assert (tmp_path / "target").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["file.safetensors", "file.pt"])
def test_what_is_loaded_stays_as_it_is_when_its_file_is_written_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(released_state("previewer"), path) if path.suffix == ".pt" else save_model(network("previewer"), path)
    loaded = load_model(path)
    other = load_model(released_state("previewer"))
    for parameter in other.parameters():
        parameter.data = parameter.data + 1
    save_model(other, path)
    assert same_weights(loaded, network("previewer"))
    assert same_weights(load_model(path), other)


def test_a_loaded_lora_stays_as_it_is_when_its_file_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(LORA, path)
    loaded = read_lora(path).changes["stage_c"]["clip_img_mapper.weight"]
    other = LowRank(torch.full((1, 4), 5.0), torch.ones(4, 1), 1.0)
    save_lora(Lora({"stage_c": {"clip_img_mapper.weight": other}}), path)
    assert isinstance(loaded, LowRank)
    assert torch.equal(loaded.down, torch.ones(1, 4))


EQUAL = """
import sys
from dataclasses import replace
from pathlib import Path
from cascade.adapters import save_lora
from cascade.checkpoints import save_model
from tests.checkpoints.files import network
from tests.fuzz.damaged_loras import original
save_lora(replace(original(), training={"b": 1, "a": [2]}), Path(sys.argv[1]) / "lora.safetensors")
save_model(network("stage_c"), Path(sys.argv[1]) / "network.safetensors")
"""


def test_equal_content_makes_equal_files(tmp_path: Path) -> None:
    """In two processes, whose tables have another order where it is left to chance."""
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", EQUAL, str(tmp_path / seed)]
        env = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=Path(__file__).parents[1], env=env, check=True)
    for name in ("lora.safetensors", "network.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


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
