"""Images from tars here and elsewhere, read as they come or prepared before: what comes, in which order, and what
happens to a run that stops."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.checkpoints import save_model
from cascade.cli import main
from cascade.errors import InvalidConfig, NotWritable
from cascade.training import SETTINGS, TASKS, fit, parse_config, read_config
from cascade.training import remote as remote_module
from cascade.training.cache import CHUNK, cached
from cascade.training.data import ImageSettings, open_images, prepared
from cascade.training.state import load_state
from cascade.training.stream import Streamed, StreamOrder
from tests import small
from tests.support import relative_error
from tests.training.test_processes import torchrun

SHAPES = [(128, 64), (64, 128), (64, 64), (120, 60)]
RATIOS = ["1/1", "2/3", "1/2"]


def png(number: int, size: tuple[int, int] = (64, 64)) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, (number % 256, 90, 20)).save(made, "PNG")
    return made.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def shard(first: int, count: int, *, shapes: Any = ((64, 64),)) -> dict[str, bytes]:
    """Images of their number's color, with it as their caption."""
    files = {}
    for number in range(first, first + count):
        files[f"{number:04}.png"] = png(number, shapes[number % len(shapes)])
        files[f"{number:04}.txt"] = str(number).encode()
        files[f"{number:04}.json"] = json.dumps({"score": number, "tags": f"{number}, a, b"}).encode()
    return files


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Forty images in four tars."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(4):
        write_tar(folder / f"{number:03}.tar", shard(10 * number, 10, shapes=SHAPES))
    return folder


def pixels_only(pixels: np.ndarray) -> dict[str, np.ndarray]:
    return {"images": pixels}


def stream(folder: Path, *, streams: int = 1, held_out: int = 0, **settings: Any) -> StreamOrder:
    values = {"size": 64, "stream": True, "aspect_ratios": RATIOS, "shuffle": 2, **settings}
    data = prepared(folder / "cache", "x", ImageSettings.model_validate(values), pixels_only)
    assert isinstance(data, Streamed)
    return StreamOrder(data, 7, held_out, streams)


def seen(order: Any, index: int, count: int = 4) -> list[str]:
    rows = order.rows(index, count)
    texts = order.data.texts(rows, (0, index)) if isinstance(order, StreamOrder) else order.data.texts(rows, (0,))
    colors = order.data.take("images", rows)[:, 30, 30, 0].tolist()
    assert colors == [int(text) for text in texts]
    return texts


def test_a_stream_shows_every_image_equally_often_in_batches_of_one_size(tmp_path: Path, tars: Path) -> None:
    order = stream(tmp_path, path=str(tars / "{000..003}.tar"))
    batches = [seen(order, index) for index in range(40)]
    counts = Counter(text for batch in batches for text in batch)
    assert len(counts) == 40
    assert max(counts.values()) - min(counts.values()) <= 3
    wider = [{np.sign(np.subtract(*SHAPES[int(text) % 4])) for text in batch} for batch in batches]
    assert all(len(shapes) == 1 for shapes in wider)
    assert batches[:10] != batches[10:20]


def test_a_batch_follows_from_its_number(tmp_path: Path, tars: Path) -> None:
    order = stream(tmp_path, path=str(tars), streams=2, random_ratio=0.3, crop="random")
    forward = [(seen(order, index), order.data.take("images", order.rows(index, 4))) for index in range(24)]
    later = stream(tmp_path, path=str(tars), streams=2, random_ratio=0.3, crop="random")
    for index in (17, 4, 23, 22, 0):
        texts, images = forward[index]
        assert seen(later, index) == texts
        assert torch.equal(later.data.take("images", later.rows(index, 4)), images)
        assert [Path(name).stem for name in later.names(index, 4)] == [f"{int(text):04}" for text in texts]


def test_streams_share_the_tars(tmp_path: Path, tars: Path) -> None:
    order = stream(tmp_path, path=str(tars), streams=4, aspect_ratios=None)
    own = [{int(text) // 10 for index in range(k, 8, 4) for text in seen(order, index)} for k in range(4)]
    assert sorted(min(tens) for tens in own) == [0, 1, 2, 3]
    assert all(len(tens) == 1 for tens in own)
    few = stream(tmp_path / "few", path=str(tars), streams=9, aspect_ratios=None)
    assert len({tuple(seen(few, index)) for index in range(9)}) == 9


def test_held_out_images_are_not_streamed(tmp_path: Path, tars: Path) -> None:
    order = stream(tmp_path, path=str(tars), held_out=3)
    trained = {text for index in range(30) for text in seen(order, index)}
    held = {text for index in range(3) for text in order.data.texts(order.held_out().rows(index, 2), (0,))}
    assert held == {"0", "1", "2"}
    assert not held & trained
    with pytest.raises(InvalidConfig, match="held_out"):
        stream(tmp_path, path=str(tars), held_out=10)


def test_folders_lists_and_tars_are_read_alike(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in shard(0, 6).items():
        (folder / name).write_bytes(data)
    lines = [{"file_name": f"{number:04}.png", "caption": str(number), "score": number} for number in range(6)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    table = {line["file_name"]: {"caption": line["caption"], "score": line["score"]} for line in lines}
    for name, content in (("list.json", lines), ("table.json", table)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    write_tar(tmp_path / "all.tar", shard(0, 6))
    (tmp_path / "places.yml").write_text(f"- file:{tmp_path / 'all.tar'}\n", encoding="utf-8")
    places = [tmp_path / "all.tar", folder / "list.jsonl", folder / "list.json", folder / "table.json", folder]
    found = []
    for place in [*places, tmp_path / "places.yml"]:
        settings = ImageSettings(path=str(place), size=32, filters=(("score", ">= 2"),))
        made = cached(tmp_path / "cache", "x", open_images(settings), pixels_only)
        found.append((list(made.captions), made.rows("images", np.arange(len(made))), made.source))
    assert all(captions == ["2", "3", "4", "5"] for captions, _, _ in found)
    assert all(np.array_equal(images, found[0][1]) for _, images, _ in found)
    assert len({source for _, _, source in found}) == 1


def test_a_long_list_is_read_in_parts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    lines = [json.dumps({"image": "a.png", "text": f"näme {number}"}, ensure_ascii=False) for number in range(600)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = open_images(ImageSettings(path=str(tmp_path / "list.jsonl"), size=32))
    parts = source.parts()
    assert len(parts) == 3
    texts = [each.texts[0] for part in parts for each in source.read(part)]
    assert texts == [f"näme {number}" for number in range(600)]
    (tmp_path / "list.jsonl").write_text('{"file_name": "a.png"}\n{"x": 3}\n', encoding="utf-8")
    with pytest.raises(InvalidConfig, match="an entry without file_name or image"):
        cached(tmp_path / "cache", "x", open_images(ImageSettings(path=str(tmp_path / "list.jsonl"))), pixels_only)


def test_braces_stand_for_numbers_and_words() -> None:
    assert remote_module.expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert remote_module.expand("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    with pytest.raises(ValueError, match="more than"):
        remote_module.expand("{0..999}{0..999}{0..999}")


AWS = """#!{python}
import pathlib, shutil, sys
root = pathlib.Path({root!r})
with (root / "calls.txt").open("a") as log:
    print(*sys.argv[1:], file=log)
if sys.argv[1:3] == ["s3", "ls"]:
    for path in sorted((root / "bucket").rglob("*")):
        key = path.relative_to(root / "bucket").as_posix()
        if path.is_file() and key.startswith(sys.argv[3].removeprefix("s3://bucket/")):
            print("2026-01-01 00:00:00", path.stat().st_size, key)
else:
    path = root / sys.argv[3].removeprefix("s3://")
    if not path.exists():
        sys.exit("fatal error: An error occurred (404) when calling the HeadObject operation: Key does not exist")
    shutil.copyfileobj(path.open("rb"), sys.stdout.buffer)
"""


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program named aws, whose buckets are folders here."""
    root = tmp_path / "aws"
    (root / "bucket" / "set").mkdir(parents=True)
    program = root / "aws"
    program.write_text(AWS.format(python=sys.executable, root=str(root)), encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for number in range(4):
        write_tar(root / "bucket" / "set" / f"{number:03}.tar", shard(10 * number, 10))
    monkeypatch.setenv("PATH", f"{root}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(remote_module, "PAUSE", 0.01)
    return root


posix = pytest.mark.skipif(os.name != "posix", reason="the program is a script")


@posix
@pytest.mark.parametrize(
    "place", ["s3://bucket/set", "s3://bucket/set/{000..003}.tar", "pipe:cat {root}/{000..003}.tar"]
)
def test_tars_come_through_a_command(tmp_path: Path, aws: Path, place: str) -> None:
    path = place.replace("{root}", str(aws / "bucket" / "set"))
    order = stream(tmp_path, path=path, aspect_ratios=None, shuffle=1)
    batches = [seen(order, index) for index in range(30)]
    assert len({text for batch in batches for text in batch}) == 40
    here = list((tmp_path / "cache").rglob("*.tar"))
    assert 0 < len(here) <= 3
    again = stream(tmp_path, path=path, aspect_ratios=None, shuffle=1)
    calls = (aws / "calls.txt").read_text(encoding="utf-8").count(" cp ") if "pipe" not in place else 0
    assert seen(again, 29) == batches[29]
    if "pipe" not in place:
        assert (aws / "calls.txt").read_text(encoding="utf-8").count(" cp ") <= calls + 3, "no tar before is read again"
    made = cached(tmp_path / "c", "x", open_images(ImageSettings(path=path, size=64)), pixels_only)
    assert sorted(map(int, made.captions)) == list(range(40))
    assert not list((tmp_path / "c").rglob("*.tar"))


@posix
def test_a_missing_key_is_named(tmp_path: Path, aws: Path) -> None:
    (aws / "bucket" / "set" / "002.tar").unlink()
    order = stream(tmp_path, path="s3://bucket/set/{000..003}.tar", aspect_ratios=None)
    with pytest.raises(InvalidConfig, match=r"set/002\.tar: could not be read, 3 times: .*Key does not exist"):
        [seen(order, index) for index in range(10)]
    with pytest.raises(InvalidConfig, match=r"no \.tar is there"):
        stream(tmp_path, path="s3://bucket/other")


@posix
def test_a_full_disk_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    tries = tmp_path / "tries"
    with pytest.raises(NotWritable, match=r"the disk is full; pipe:.* needs room there"):
        remote_module.fetch(f"pipe:echo half; echo once >> '{tries}'; exit 1", tmp_path)
    assert tries.read_text(encoding="utf-8") == "once\n"
    assert list(tmp_path.rglob("*.tar*")) == []


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidConfig, match="the program aws is not installed"):
        stream(tmp_path, path="s3://bucket/set")


def test_a_tar_that_ends_in_the_middle_and_images_that_are_none(tmp_path: Path, tars: Path) -> None:
    data = (tars / "003.tar").read_bytes()
    (tars / "003.tar").write_bytes(data[: len(data) // 2])
    write_tar(tars / "004.tar", {"bad.png": b"no image", "bad.txt": b"x", **shard(50, 2)})
    (tars / "005.tar").write_bytes(b"")
    order = stream(tmp_path, path=str(tars))
    found = {int(text) for index in range(60) for text in seen(order, index, 2)}
    assert {*range(30), 50, 51} < found
    assert 30 < len(found) < 42
    source = open_images(ImageSettings(path=str(tars), size=32))
    made = cached(tmp_path / "cache", "x", source, pixels_only)
    assert "left out 004.tar/bad.png: no image, or not of a known format" in made.problems
    assert any(line.startswith("left out 003.tar") for line in made.problems)


def test_an_image_that_breaks_while_it_is_decoded_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(noise, "PNG")
    broken = noise.getvalue()[:-4000]
    write_tar(tmp_path / "a.tar", {"broken.png": broken, "broken.txt": b"x", **shard(1, 3)})
    order = stream(tmp_path, path=str(tmp_path / "a.tar"))
    texts = seen(order, 0)
    assert len(texts) == 4
    assert set(texts) <= {"1", "2", "3"}
    assert "a.tar/broken.png: left out" in caplog.text
    write_tar(tmp_path / "b.tar", {"broken.png": broken})
    with pytest.raises(InvalidConfig, match=r"none of the 4 images of a batch can be read; b\.tar/broken\.png"):
        seen(stream(tmp_path, path=str(tmp_path / "b.tar")), 0)
    with pytest.raises(InvalidConfig, match="that the filters leave"):
        seen(stream(tmp_path, path=str(tmp_path / "a.tar"), filters=[["score", "> 9"]]), 0)


def test_captions_in_other_encodings(tmp_path: Path) -> None:
    for number, text in enumerate(("eine Eule".encode("utf-16"), "Käuzchen".encode("cp1252"), "梟".encode())):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        (tmp_path / f"{number}.txt").write_bytes(text)
    made = cached(tmp_path / "cache", "x", open_images(ImageSettings(path=str(tmp_path), size=32)), pixels_only)
    assert list(made.captions) == ["eine Eule", "K\ufffduzchen", "梟"]
    assert made.problems == ["1 of 3 images whose caption is not UTF-8: 1.txt"]


def test_a_size_with_fewer_images_than_a_batch(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {**shard(0, 9), "wide.png": png(200, (128, 64)), "wide.txt": b"200"})
    settings = ImageSettings(path=str(tmp_path / "a.tar"), size=64, aspect_ratios=("1/1", "1/2"))
    made = cached(tmp_path / "cache", "x", open_images(settings), pixels_only)
    assert (made.sizes, made.counts) == (["64x64", "32x64"], [9, 1])
    assert made.rows("images", np.array([9])).shape == (1, 32, 64, 3)
    order = stream(tmp_path, path=str(tmp_path / "a.tar"), aspect_ratios=["1/1", "1/2"])
    batches = [order.data.texts(order.rows(index, 4), (0,)) for index in range(30)]
    wide = [batch for batch in batches if "200" in batch]
    assert all(batch == ["200"] * 4 for batch in wide)
    assert 1 <= len(wide) <= 4


def test_a_cache_of_tars_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", shard(0, CHUNK + 20))
    write_tar(tmp_path / "b.tar", shard(0, 5))
    settings = ImageSettings(path=(str(tmp_path / "a.tar"), str(tmp_path / "b.tar")), size=32)
    computed: list[int] = []

    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        computed.append(len(pixels))
        if len(computed) == 2:
            raise KeyboardInterrupt
        return {"images": pixels}

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "cache", "x", open_images(settings), compute)
    made = cached(tmp_path / "cache", "x", open_images(settings), compute)
    assert computed == [CHUNK, 20, 20, 5]
    assert list(map(int, made.captions)) == [*range(CHUNK + 20), *range(5)]
    (tmp_path / "b.tar").touch()
    assert cached(tmp_path / "cache", "x", open_images(settings), pixels_only).source == made.source


def section(folder: Path, **images: Any) -> dict[str, Any]:
    return {
        "images": {"path": "tars", "size": 64, "aspect_ratios": RATIOS, **images},
        "cache": "cache",
        "effnet": "effnet.safetensors",
        "effnet_size": 64,
        "start": "stage_c.safetensors",
        "text_encoder": "text_encoder.safetensors",
        "image_encoder": "image_encoder.safetensors",
        "train_text_encoder": False,
        "train_image_encoder": False,
        "previewer": None,
    }


@pytest.fixture
def folder(tmp_path: Path, tars: Path) -> Path:
    """The tars, and networks."""
    for kind in ("effnet", "stage_a", "stage_b", "stage_c", "text_encoder", "image_encoder"):
        save_model(small.part(kind), tmp_path / f"{kind}.safetensors")
    return tmp_path


def settings(task: str, output: str, section: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values = {"task": task, "output": output, "steps": 8, "batch_size": 2, "threads": 1, "device": "cpu", **changes}
    return {"checkpoint_every": 3, "log_every": 2, **values, task: section}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_state(folder)
    assert state is not None
    return {f"{name}.{key}": value for name, module in state["modules"].items() for key, value in module.items()}


def run_until(config: Any, step: int) -> None:
    steps: list[int] = []
    task = TASKS["stage_c"].task(config)
    fit(task, config, on_step=lambda i, n, m: steps.append(i), should_stop=lambda: steps[-1:] == [step])


@pytest.mark.parametrize("streamed", [True, False])
def test_a_run_that_stops_goes_on_exactly(folder: Path, streamed: bool) -> None:
    random = {
        "stream": streamed,
        "crop": "random",
        "captions": {"keys": {"txt": 1, "json.tags": 1}, "shuffle_tags": True},
    }
    values = section(folder, **random) | {"size_conditions": True}
    whole = parse_config(settings("stage_c", "whole", values), SETTINGS, where="t", root=folder)
    fit(TASKS["stage_c"].task(whole), whole)
    parted = parse_config(settings("stage_c", "parted", values), SETTINGS, where="t", root=folder)
    for until in (2, 5, 8):
        run_until(parted, until)
    a, b = weights(folder / "whole"), weights(folder / "parted")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_stream_what_one_does(folder: Path) -> None:
    values = section(folder, stream=True)
    alone = parse_config(settings("stage_c", "alone", values, accumulation=2), SETTINGS, where="t", root=folder)
    fit(TASKS["stage_c"].task(alone), alone)
    path = folder / "together.json"
    path.write_text(json.dumps(settings("stage_c", "together", values)), encoding="utf-8")
    result = torchrun("-m", "cascade", "train", str(path), "--folder", str(folder))
    assert result.returncode == 0, result.stderr[-3000:]
    a, b = weights(folder / "alone"), weights(folder / "together")
    assert all(relative_error(a[name], b[name]) < 1e-4 for name in a)


@pytest.mark.parametrize("streamed", [True, False])
def test_stage_b_and_lora_train_on_shapes_of_their_own(folder: Path, streamed: bool) -> None:
    images = section(folder, stream=streamed)["images"]
    parts = {"cache": "cache", "effnet": "effnet.safetensors", "text_encoder": "text_encoder.safetensors"}
    stage_b = {
        **parts,
        "images": images,
        "stage_a": "stage_a.safetensors",
        "start": "stage_b.safetensors",
        "effnet_sizes": [32, 64],
        "effnet_resize": "nearest",
        "pyramid_noise": True,
        "size_conditions": True,
        "sample_steps": 2,
    }
    random = {**images, "captions": {"keys": {"txt": 1, "json.tags": 1}}}
    lora = {**parts, "images": random, "stage_c": "stage_c.safetensors", "rank": 2, "caption_chunks": 2}
    lora["effnet_size"] = 64
    for task, values in (("stage_b", stage_b), ("lora", lora)):
        config = parse_config(settings(task, f"run-{task}", values, sample_every=8), SETTINGS, where="t", root=folder)
        built = TASKS[task].task(config)
        assert len({tuple(built.batch(index).latents.shape[-2:]) for index in range(12)}) > 1
        assert fit(built, config).complete


def test_prepare_makes_checks_and_mends_what_a_training_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "c.json"
    path.write_text(json.dumps(settings("stage_c", "out", section(folder))), encoding="utf-8")
    command = ["prepare", str(path), "--folder", str(folder)]
    assert main(command) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert ": 40 rows (" in line
    assert "4 shards" in line
    [place] = (folder / "cache").iterdir()
    shards = sorted(place.glob("*.safetensors"))
    times = [shard.stat().st_mtime_ns for shard in shards]
    data = bytearray(shards[1].read_bytes())
    data[-9] ^= 1
    shards[1].write_bytes(data)
    assert main(command) == 0
    assert [shard.stat().st_mtime_ns == time for shard, time in zip(shards, times, strict=True)] == [1, 0, 1, 1]
    assert main(["train", str(path), "--folder", str(folder)]) == 0
    assert main([*command, "--set", "stage_c.images.stream=true"]) == 1
    assert "with stream nothing is prepared" in capsys.readouterr().err


def test_processes_prepare_together(folder: Path) -> None:
    config = settings("stage_c", "out", section(folder))
    path = folder / "c.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    result = torchrun("-m", "cascade", "prepare", str(path), "--folder", str(folder))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count(": 40 rows (") == 1
    config["stage_c"]["cache"] = "alone"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert main(["prepare", str(path), "--folder", str(folder)]) == 0
    together, alone = (
        {file.name: file.read_bytes() for file in (folder / name).rglob("*.safetensors")} for name in ("cache", "alone")
    )
    assert together == alone
    assert read_config(path, SETTINGS, root=folder).settings.cache == folder / "alone"
