"""Two trainings in one folder, full disks, and what is left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from cascade.errors import BrokenCheckpoint, CascadeError, FolderInUse, NotWritable
from cascade.training.cache import cached, verify
from cascade.training.lock import LOCK_FILE, OWNER_FILE, exclusive
from cascade.training.loop import fit
from cascade.training.metrics import METRICS_FILE
from cascade.training.state import STATE_FILE, load_state
from tests.training.test_data import Numbers
from tests.training.test_loop import Regression, run, same, settings, weights

ROOT = Path(__file__).resolve().parent.parent.parent
HOLD = """
import sys, time, pathlib
from cascade.training.lock import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_training(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held" + b"\n"
            yield process
        finally:
            process.kill()


def test_a_second_training_is_refused_and_told_whose_the_folder_is(tmp_path: Path) -> None:
    run(tmp_path, steps=5)
    before = (tmp_path / STATE_FILE).read_bytes()
    with another_training(tmp_path) as other:
        with pytest.raises(FolderInUse, match=rf"{tmp_path.name}: process {other.pid} \(since 20.*trains there"):
            run(tmp_path)
        assert (tmp_path / STATE_FILE).read_bytes() == before
    assert run(tmp_path).complete, "the lock went with the process that was killed"


def test_a_second_training_of_this_process_is_refused_too(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def second() -> None:
        try:
            run(tmp_path)
        except FolderInUse as error:
            refused.append(error)

    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == 2:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    assert fit(Regression(), settings(tmp_path), on_step=on_step).complete
    assert len(refused) == 1
    run(tmp_path / "whole")
    assert same(weights(tmp_path), weights(tmp_path / "whole"))


def test_the_folder_is_free_after_a_training_and_after_an_error(tmp_path: Path) -> None:
    with exclusive(tmp_path), exclusive(tmp_path / "." / "x" / ".."):
        assert (tmp_path / OWNER_FILE).exists()
    with pytest.raises(RuntimeError), exclusive(tmp_path):
        raise RuntimeError
    assert not (tmp_path / OWNER_FILE).exists()
    FileLock(tmp_path / LOCK_FILE, timeout=0).acquire().lock.release()


def test_the_owner_need_not_be_readable(tmp_path: Path) -> None:
    with another_training(tmp_path):
        for owner in (b"", b"[]", b"{}", b'{"process": "x", "since": 3}', b"\xff", None):
            (tmp_path / OWNER_FILE).unlink(missing_ok=True)
            if owner is not None:
                (tmp_path / OWNER_FILE).write_bytes(owner)
            with pytest.raises(FolderInUse, match="another process trains there"), exclusive(tmp_path):
                pass


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotWritable, match="cannot be written"):
            run(folder)


RUN_FILES = (LOCK_FILE, OWNER_FILE, METRICS_FILE, "loss.png", STATE_FILE)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_link_in_a_training_folder_is_not_written_through(tmp_path: Path, name: str, there: bool) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    (folder / name).symlink_to(other)
    if there:
        other.write_bytes(b"of somebody else")
    with suppress(CascadeError):
        run(folder, log_every=1)
    assert (other.read_bytes() if there else other.exists()) == (b"of somebody else" if there else False)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links to themselves")
@pytest.mark.parametrize("name", [OWNER_FILE, METRICS_FILE, STATE_FILE])
def test_a_pipe_in_a_training_folder_is_an_error(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CascadeError, match=tmp_path.name):
        run(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    with pytest.raises(NotWritable):
        run(tmp_path / "itself")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 200, 3000])
def test_a_full_disk_is_named_and_the_last_state_stays(tmp_path: Path, size: int) -> None:
    run(tmp_path / "whole")
    folder = tmp_path / "full"
    fit(Regression(), settings(folder), should_stop=lambda: (folder / STATE_FILE).exists())
    assert weights(folder)["step"] == 5
    before = (folder / STATE_FILE).read_bytes()
    with pytest.raises(NotWritable, match=rf"{folder.name}: (could not|cannot) be written: .*"), full_disk(size):
        run(folder)
    assert (folder / STATE_FILE).read_bytes() == before
    assert not list(folder.glob(".*.tmp"))
    assert run(folder).complete
    assert same(weights(tmp_path / "whole"), weights(folder))


def test_a_full_disk_while_a_cache_is_made(tmp_path: Path) -> None:
    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"images": pixels}

    with pytest.raises(NotWritable, match="cache: could not be written"), full_disk(5000):
        cached(tmp_path / "cache", "x", Numbers(4), compute)
    assert not list((tmp_path / "cache").rglob("*.*"))
    assert len(cached(tmp_path / "cache", "x", Numbers(4), compute).captions) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="temporaries of other processes are kept there")
def test_what_a_killed_training_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [tmp_path / f".{STATE_FILE}.{ended.pid}.tmp", tmp_path / "samples" / f".step_1.png.{ended.pid}.tmp"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half of it")
    (tmp_path / LOCK_FILE).touch()
    (tmp_path / OWNER_FILE).write_text(json.dumps({"process": ended.pid, "since": "before"}), encoding="utf-8")
    run(tmp_path)
    assert not [path for path in left if path.exists()]
    assert not (tmp_path / OWNER_FILE).exists()


SHARD, INDEX = "0000000-00000.safetensors", "index.json"


def damaged_caches() -> dict[str, Any]:
    def index(text: str) -> Any:
        return lambda place: (place / INDEX).write_text(text, encoding="utf-8")

    def changed(**values: Any) -> Any:
        def change(place: Path) -> None:
            data = json.loads((place / INDEX).read_text(encoding="utf-8"))
            (place / INDEX).write_text(json.dumps({**data, **values}), encoding="utf-8")

        return change

    def pipe(name: str) -> Any:
        def change(place: Path) -> None:
            (place / name).unlink()
            if sys.platform != "win32":
                os.mkfifo(place / name)

        return change

    def cut(place: Path) -> None:
        data = (place / SHARD).read_bytes()
        (place / SHARD).write_bytes(data[:-1])

    def other_header(place: Path) -> None:
        data = bytearray((place / SHARD).read_bytes())
        data[8:16] = b"{{{{{{{{"
        (place / SHARD).write_bytes(data)

    return {
        "no shards": changed(shards=[]),
        "another version": changed(version=0),
        "shards of another type": changed(shards=[1, 2]),
        "a shard outside": changed(shards=[["../../x", {"32x32": 4}, 1, "0"]]),
        "no JSON": index("["),
        "a list": index("[]"),
        "deep JSON": index("[" * 100_000),
        "a cut shard": cut,
        "a header that is no JSON": other_header,
        "no shard": lambda place: (place / SHARD).unlink(),
        "a pipe for an index": pipe(INDEX),
        "a pipe for a shard": pipe(SHARD),
        "no index": lambda place: (place / INDEX).unlink(),
    }


@pytest.mark.parametrize("damage", damaged_caches().values(), ids=damaged_caches().keys())
def test_a_damaged_cache_is_mended(tmp_path: Path, damage: Any) -> None:
    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"images": pixels}

    source, rows = Numbers(4), np.arange(4)
    expected = cached(tmp_path, "x", source, compute).rows("images", rows)
    [place] = tmp_path.iterdir()
    damage(place)
    again = cached(tmp_path, "x", source, compute)
    assert list(again.captions) == ["0", "1", "2", "3"]
    assert np.array_equal(again.rows("images", rows), expected)


def test_a_changed_byte_is_found_when_it_is_looked_for(tmp_path: Path) -> None:
    cached(tmp_path, "x", Numbers(4), lambda pixels: {"images": pixels})
    [place] = tmp_path.iterdir()
    assert verify(place) == []
    data = bytearray((place / SHARD).read_bytes())
    data[-5] ^= 1
    (place / SHARD).write_bytes(data)
    assert verify(place) == [SHARD]


def test_a_state_is_checked_to_the_last_byte(tmp_path: Path) -> None:
    """Of its content; the padding between may change."""
    run(tmp_path, steps=3)
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    good = load_state(tmp_path)
    assert good is not None
    del good["seconds"]
    dice = np.random.default_rng(0)
    noticed = 0
    for _ in range(200):
        data = bytearray(whole)
        data[dice.integers(len(data))] ^= 1 << dice.integers(8)
        path.write_bytes(data)
        try:
            found = load_state(tmp_path)
        except BrokenCheckpoint:
            noticed += 1
            continue
        assert found is not None
        del found["seconds"]
        assert same(found, good), "a state that is read is as it was written"
    assert noticed > 50
