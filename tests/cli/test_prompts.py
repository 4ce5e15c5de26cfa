"""`generate --prompts`: many images from a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.cli import main

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--steps", "2", "--steps-b", "1", "--width", "64", "--height", "48"]


def run(folder: Path, prompts: Path, output: Path, *options: str) -> int:
    return main(["generate", "--prompts", str(prompts), "-o", str(output), "--models", str(folder), *FAST, *options])


def manifest(output: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted(output.glob("manifest*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_each_line_of_a_text_is_an_image(folder: Path, tmp_path: Path) -> None:
    prompts = written(tmp_path / "prompts.txt", "a red circle\n\na blue star é\n")
    assert run(folder, prompts, tmp_path / "out", "--seed", "5") == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["00001.png", "00003.png"]
    first, second = manifest(tmp_path / "out")
    assert (first["line"], first["image"], first["prompt"], first["seed"]) == (1, "00001.png", "a red circle", 5)
    assert (second["prompt"], second["seed"]) == ("a blue star é", 6)
    with Image.open(tmp_path / "out" / "00001.png") as image:
        assert image.size == (64, 48)
        recipe = json.loads(image.info["cascade"])
    assert recipe == {name: value for name, value in first.items() if name not in ("line", "image")}


def test_an_image_is_the_one_of_a_single_command(folder: Path, tmp_path: Path) -> None:
    prompts = written(tmp_path / "prompts.jsonl", json.dumps({"prompt": "a red circle", "seed": 9, "cfg": 3}))
    assert run(folder, prompts, tmp_path / "out") == 0
    alone = tmp_path / "alone.png"
    options = ["--seed", "9", "--cfg", "3", "--models", str(folder), *FAST]
    assert main(["generate", "a red circle", "-o", str(alone), *options]) == 0
    with Image.open(alone) as one, Image.open(tmp_path / "out" / "00001.png") as other:
        assert one.tobytes() == other.tobytes()


def test_lines_with_settings_of_their_own(folder: Path, tmp_path: Path) -> None:
    table = "prompt,seed,width,steps-b,sampler,negative\na cat,7,96,,,\na dog,,,2,ddim,red\n"
    assert run(folder, written(tmp_path / "prompts.csv", table), tmp_path / "out") == 0
    cat, dog = manifest(tmp_path / "out")
    assert (cat["line"], cat["seed"], cat["width"], cat["height"], cat["negative"]) == (2, 7, 96, 48, "")
    assert (dog["seed"], dog["width"], dog["negative"]) == (1, 64, "red")
    assert (dog["stage_b"]["steps"], dog["stage_c"]["sampler_name"]) == (2, "ddim")
    with Image.open(tmp_path / "out" / "00002.png") as image:
        assert image.size == (96, 48)


def test_a_bad_line_does_not_end_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        '{"prompt": "a cat"}',
        "not json",
        '{"prompt": "a cat", "colour": "red"}',
        '{"prompt": "a cat", "width": 1}',
        '{"prompt": "a cat", "steps": "many"}',
        '{"prompt": "a cat", "cfg": [1]}',
        '{"seed": 3}',
        "[1]",
        '"a dog"',
    ]
    prompts = written(tmp_path / "prompts.jsonl", "\n".join(lines))
    assert run(folder, prompts, tmp_path / "out") == 1
    found = manifest(tmp_path / "out")
    assert [entry["line"] for entry in found if "image" in entry] == [1, 9]
    assert [entry["line"] for entry in found if "error" in entry] == [2, 3, 4, 5, 6, 7, 8]
    said = capsys.readouterr().err
    for number, words in ((2, "not JSON"), (3, "colour"), (4, "32 to 16384"), (5, "'many'"), (7, "no prompt")):
        assert any(f"line {number}:" in line and words in line for line in said.splitlines())


def test_the_same_command_continues(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade import pipelines

    asked: list[list[str]] = []
    generate = pipelines.generate

    def counted(parts: Any, prompts: list[str], **options: Any) -> Any:
        asked.append(prompts)
        if "stop" in prompts and len(asked) == 2:
            raise KeyboardInterrupt
        return generate(parts, prompts, **options)

    monkeypatch.setattr(pipelines, "generate", counted)
    prompts = written(tmp_path / "prompts.txt", "one\nstop\nthree\n")
    assert run(folder, prompts, tmp_path / "out") == 130
    with (tmp_path / "out" / "manifest.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"line": 2, "ima')  # killed while it wrote
    with (tmp_path / "out" / "manifest.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert run(folder, prompts, tmp_path / "out") == 0
    assert asked == [["one"], ["stop"], ["stop"], ["three"]]
    # A line that changed, and an image that was deleted, are made again; the rest is not.
    written(prompts, "one\nchanged\nthree\n")
    (tmp_path / "out" / "00003.png").unlink()
    assert run(folder, prompts, tmp_path / "out") == 0
    assert asked[4:] == [["changed"], ["three"]]
    assert run(folder, prompts, tmp_path / "out") == 0
    assert len(asked) == 6


def test_lines_are_sampled_together_where_their_settings_are_equal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cascade import pipelines

    asked: list[list[str]] = []
    generate = pipelines.generate

    def counted(parts: Any, prompts: list[str], **options: Any) -> Any:
        asked.append(prompts)
        return generate(parts, prompts, **options)

    monkeypatch.setattr(pipelines, "generate", counted)
    lines = [
        {"prompt": "a"},
        {"prompt": "b"},
        {"prompt": "c", "cfg": 2},
        {"prompt": "d"},
        {"prompt": "e"},
        {"prompt": "f"},
    ]
    prompts = written(tmp_path / "prompts.jsonl", "\n".join(map(json.dumps, lines)))
    assert run(folder, prompts, tmp_path / "out", "--batch-size", "2") == 0
    assert asked == [["a", "b"], ["d", "e"], ["f"], ["c"]]


@pytest.mark.slow
def test_under_torchrun_every_image_is_that_of_one_process(folder: Path, tmp_path: Path) -> None:
    prompts = written(tmp_path / "prompts.txt", "\n".join(f"a cat {i}" for i in range(5)))
    assert run(folder, prompts, tmp_path / "one", "--batch-size", "2") == 0
    options = ["generate", "--prompts", str(prompts), "-o", str(tmp_path / "two"), "--models", str(folder), *FAST]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cascade"]
    subprocess.run([*torchrun, *options, "--batch-size", "2"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    names = [f"{i:05}.png" for i in range(1, 6)]
    assert sorted(path.name for path in (tmp_path / "two").glob("*.png")) == names
    for name in names:
        with Image.open(tmp_path / "one" / name) as one, Image.open(tmp_path / "two" / name) as other:
            assert one.tobytes() == other.tobytes()
    assert len(list((tmp_path / "two").glob("manifest-*-of-2.jsonl"))) == 2
    assert sorted(entry["line"] for entry in manifest(tmp_path / "two")) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["a cat", "--prompts", "p.txt", "-o", "out"], "not both"),
        (["--prompts", "p.txt"], "-o FOLDER"),
        (["--prompts", "p.txt", "-o", "p.txt"], "a file of that name"),
        (["--prompts", "p.txt", "-o", "out", "--number", "2"], "--number"),
        (["--prompts", "p.txt", "-o", "out", "--image", "p.png"], "--image"),
        (["--prompts", "p.xml", "-o", "out"], ".jsonl"),
        (["--prompts", "empty.txt", "-o", "out"], "no prompts"),
        (["--prompts", "latin.txt", "-o", "out"], "UTF-8"),
        (["--prompts", "none.txt", "-o", "out"], "none.txt"),
        ([], "no prompt"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("p.txt", "a cat"), ("p.xml", "<p/>"), ("empty.txt", "\n\n")):
        written(tmp_path / name, text)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert main(["generate", *options]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
