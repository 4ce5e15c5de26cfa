"""`generate --control`: with the tiny cascade's ControlNets, and with small random ones for what they read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.checkpoints import save_model
from cascade.cli import main
from cascade.images import canny, from_pillow, to_pillow
from cascade.models import ControlNet, ControlNetConfig, initialize
from cascade.tiny import grammar
from cascade.tiny.analysis import describe, foreground
from cascade.tiny.drawing import draw
from tests.small import CONFIGS

PROMPT = "a large yellow circle on a purple background"

Run = Callable[..., tuple[bytes, dict[str, Any]]]


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random ControlNet for each number of channels, for the Stage C of `folder`."""
    root = tmp_path_factory.mktemp("controlnets")
    for channels in (1, 3, 4, 5, 16, 512):
        torch.manual_seed(channels)
        effnet = CONFIGS["effnet"]
        reader = (
            {"backbone": "simple"} if channels > 4 else {"stem": effnet.stem, "stages": effnet.stages, "features": 8}
        )
        net = initialize(ControlNet(ControlNetConfig(in_channels=channels, width=16, blocks=(0, 2), **reader)))
        for projection in net.projections:
            torch.nn.init.normal_(projection[2].weight, std=0.2)
        save_model(net, root / f"reads_{channels}.safetensors")
    return root


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A white rectangle on black, 288 x 192 pixels."""
    pixels = np.zeros((192, 288, 3), np.uint8)
    pixels[30:120, 60:210] = 255
    path = tmp_path_factory.mktemp("hints") / "shapes.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """White on the right."""
    path = tmp_path_factory.mktemp("masks") / "mask.png"
    image = Image.new("L", (96, 64))
    image.paste(255, (60, 0, 96, 64))
    image.save(path)
    return path


def arguments(folder: Path, out: Path) -> list[str]:
    few = ["--width", "288", "--height", "192", "--steps", "4", "--steps-b", "1"]
    return ["generate", "a cat", "-o", str(out), "--models", str(folder), *few]


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    """(options) -> pixels and recipe."""

    def made(*options: object) -> tuple[bytes, dict[str, Any]]:
        out = tmp_path / "image.png"
        assert main([*arguments(folder, out), *map(str, options)]) == 0
        with Image.open(out) as image:
            return image.tobytes(), json.loads(image.text["cascade"])

    return made


def test_the_shape_is_where_the_hint_has_it(tmp_path: Path) -> None:
    scene = grammar.parse("a large red circle on a blue background, left")
    assert scene is not None
    hint = Image.fromarray(draw(scene, np.random.default_rng(3)))
    hint.save(tmp_path / "hint.png")
    to_pillow(canny(from_pillow(hint))[0].expand(3, -1, -1)).save(tmp_path / "edges.png")
    wanted = foreground(np.array(hint))

    def overlap(*options: str) -> float:
        out = tmp_path / "image.png"
        assert main(["generate", PROMPT, "-o", str(out), "--steps", "12", "--steps-b", "5", *options]) == 0
        with Image.open(out) as image:
            pixels = np.array(image)
        seen = describe(pixels)
        assert (seen.background, [item.color for item in seen.items]) == ("purple", ["yellow"])
        found = foreground(pixels)
        return float((found & wanted).sum() / (found | wanted).sum())

    assert overlap() < 0.6
    assert overlap("--control", f"canny={tmp_path / 'hint.png'}") > 0.8
    assert overlap("--control", f"canny={tmp_path / 'edges.png'}", "--control-as-is") > 0.8


@pytest.mark.parametrize("channels", [1, 3, 4, 16])
def test_what_each_kind_reads(run: Run, nets: Path, photo: Path, shapes: Path, mask: Path, channels: int) -> None:
    net = nets / f"reads_{channels}.safetensors"
    options = ["--mask", mask] if channels == 4 else []
    plain, _ = run()
    pixels, recipe = run("--control", f"{net}={shapes}", *options)
    assert pixels != plain
    assert recipe["control"] == [f"{net.name}=shapes.png=1"]
    assert recipe.get("mask") == ("mask.png" if channels == 4 else None)
    assert run("--control", f"{net}={photo}", *options)[0] != pixels
    assert run("--control", f"{net}={shapes}=0.5", *options)[0] not in (pixels, plain)
    assert run("--control", f"{net}={shapes}=0", *options)[0] == plain


def test_edges_are_found_unless_they_are_there_already(run: Run, nets: Path, shapes: Path, tmp_path: Path) -> None:
    net = nets / "reads_1.safetensors"
    with Image.open(shapes) as image:
        to_pillow(canny(from_pillow(image))[0].expand(3, -1, -1)).save(tmp_path / "edges.png")
    found, _ = run("--control", f"{net}={shapes}")
    given, recipe = run("--control", f"{net}={tmp_path / 'edges.png'}", "--control-as-is")
    assert recipe["control_as_is"]
    # The file holds the edges in 8 bits.
    difference = max(abs(a - b) for a, b in zip(found, given, strict=True))
    assert difference <= 3
    assert run("--control", f"{net}={tmp_path / 'edges.png'}")[0] != given


def test_the_mask_reaches_the_hint(run: Run, nets: Path, photo: Path, mask: Path) -> None:
    control = ["--control", f"{nets / 'reads_4.safetensors'}={photo}"]
    assert run(*control, "--mask", mask)[0] != run(*control, "--mask", photo)[0]


def test_the_part_of_sampling_in_which_it_acts(run: Run, nets: Path, shapes: Path) -> None:
    # Four steps: 0, 0.25, 0.5 and 0.75.
    control = ["--control", f"{nets / 'reads_1.safetensors'}={shapes}"]
    plain, whole = run()[0], run(*control)[0]
    assert run(*control, "--control-start", "0.8")[0] == plain
    first, recipe = run(*control, "--control-end", "0.3")
    assert (recipe["control_start"], recipe["control_end"]) == (0.0, 0.3)
    assert len({plain, whole, first, run(*control, "--control-start", "0.3")[0]}) == 4


def test_several_add_up(run: Run, nets: Path, shapes: Path) -> None:
    control = f"{nets / 'reads_3.safetensors'}={shapes}"
    both, recipe = run("--control", f"{control}=0.25", "--control", f"{control}=0.75")
    assert recipe["control"] == ["reads_3.safetensors=shapes.png=0.25", "reads_3.safetensors=shapes.png=0.75"]
    once, _ = run("--control", control)
    assert max(abs(a - b) for a, b in zip(both, once, strict=True)) <= 1


def test_without_a_size_the_hint_gives_its_proportions(
    folder: Path, nets: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "image.png"
    few = ["--steps", "1", "--steps-b", "1"]
    monkeypatch.setattr("cascade.tiny.parts", lambda: {path.stem: path for path in folder.iterdir()})
    control = f"{nets / 'reads_1.safetensors'}={shapes}"
    assert main(["generate", "a cat", "-o", str(out), "--control", control, *few]) == 0
    with Image.open(out) as image:
        assert image.size == (384, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--control", "{nets}/reads_4.safetensors={hint}"], "an inpainting ControlNet needs --mask"),
        (["--control", "{nets}/reads_5.safetensors={hint}"], "reads_5.safetensors: this ControlNet reads 5 channels"),
        (["--control", "{nets}/reads_512.safetensors={hint}"], "use the node Identity Hint"),
        (["--control", "{folder}/stage_c.safetensors={hint}"], "stage_c.safetensors"),
        (["--control", "canny={hint}"], "this ControlNet was made for a Stage C of width 128; this one's is 16"),
        (["--control", "nowhere.safetensors={hint}"], "nowhere.safetensors"),
        (["--control", "canny=nowhere.png"], "nowhere.png"),
        (["--control", "canny={hint}", "--mask", "{hint}"], "--mask needs --image"),
        (["--control-start", "0.6", "--control-end", "0.4"], "--control-start 0.6 is above --control-end 0.4"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    folder: Path,
    nets: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    given = [option.format(nets=nets, folder=folder, hint=shapes) for option in options]
    assert main([*arguments(folder, tmp_path / "image.png"), *given]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_missing_encoder_is_named(
    folder: Path, nets: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        word
        for kind in ("text_encoder", "stage_c", "stage_b", "stage_a")
        for word in ("--models", str(folder / f"{kind}.safetensors"))
    ]
    control = f"{nets / 'reads_16.safetensors'}={shapes}"
    assert main(["generate", "a cat", "-o", str(tmp_path / "image.png"), *given, "--control", control]) == 1
    assert "error: effnet not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    "control", ["canny", "canny=", "=hint.png", "canny=hint.png=0.5=1", "canny=hint.png=strong", "canny=hint.png=nan"]
)
def test_what_is_not_written_as_file_and_hint(capsys: pytest.CaptureFixture[str], control: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "a cat", "--control", control])
    assert stop.value.code == 2
    assert "FILE=HINT" in capsys.readouterr().err.splitlines()[-1]
