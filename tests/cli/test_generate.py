from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cascade import tiny
from cascade.cli import main
from cascade.cli._common import output_paths
from cascade.errors import CascadeError

ROOT = Path(__file__).resolve().parents[2]

FAST = ["--steps", "2", "--steps-b", "1", "--width", "64", "--height", "48"]
PROMPT = "a red circle on a blue background"


@pytest.fixture
def as_tiny(folder, monkeypatch):
    """The small random networks in the place of the tiny cascade."""
    monkeypatch.setattr(tiny, "parts", lambda: {path.stem: path for path in folder.iterdir()})


def test_the_tiny_cascade_says_so_in_one_line(as_tiny, tmp_path, capsys):
    out = tmp_path / "circle.png"
    assert main(["generate", PROMPT, "-o", str(out), "--steps", "1", "--steps-b", "1"]) == 0
    with Image.open(out) as image:
        assert image.size == (256, 256)
    said = capsys.readouterr()
    assert said.out.split() == [str(out)]
    lines = said.err.splitlines()
    assert len(lines) == 1
    assert "tiny" in lines[0]
    assert "--models" in lines[0]


def test_a_prompt_outside_the_grammar_gets_an_image_and_a_hint(as_tiny, tmp_path, capsys):
    assert main(["generate", "an owl in the snow", "-o", str(tmp_path / "owl.png"), *FAST]) == 0
    assert (tmp_path / "owl.png").exists()
    assert "owl" in capsys.readouterr().err


def test_real_networks_are_found_and_named(folder, tmp_path, capsys):
    out = tmp_path / "a.jpg"
    assert main(["generate", PROMPT, "-o", str(out), "--models", str(folder), *FAST]) == 0
    said = capsys.readouterr().err
    assert "tiny" not in said
    for kind in ("text_encoder", "stage_c", "stage_b", "stage_a"):
        assert f"{kind}.safetensors" in said
    with Image.open(out) as image:
        assert image.size == (64, 48)


def test_missing_networks_are_listed(folder, tmp_path, capsys):
    model = str(folder / "stage_c.safetensors")
    assert main(["generate", PROMPT, "-o", str(tmp_path / "a.png"), "--models", model]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("stage_b.safetensors" in line and "diffusion_models" in line for line in lines)
    assert any("stage_a.safetensors" in line and "vae" in line for line in lines)
    assert lines[-1].startswith("error: text_encoder, stage_b, stage_a not found")


def test_seeds_and_the_recipe_in_the_image(folder, tmp_path):
    def make(name, *options):
        arguments = ["generate", PROMPT, "-o", str(tmp_path / name), "--models", str(folder), *FAST, *options]
        assert main(arguments) == 0

    make("one.png", "--seed", "6", "--negative", "grün")
    make("many.png", "--seed", "5", "--negative", "grün", "--number", "2")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "many-2.png") as second:
        recipe = json.loads(one.text["cascade"])
        assert recipe == json.loads(second.text["cascade"])
        assert (recipe["prompt"], recipe["negative"], recipe["seed"]) == (PROMPT, "grün", 6)
        assert recipe["stage_c"] == {"steps": 2, "cfg": 4.0}
        difference = max(abs(a - b) for a, b in zip(one.tobytes(), second.tobytes(), strict=True))
        assert difference <= 1
    assert (tmp_path / "many-1.png").exists()


def test_default_names_are_free_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cascade-1.png").touch()
    assert [str(path) for path in output_paths(None, 2)] == ["cascade-2.png", "cascade-3.png"]


@pytest.mark.parametrize("name", ["image.xyz", "image", "nowhere/image.png"])
def test_an_image_that_cannot_be_written_is_refused_first(tmp_path, name):
    with pytest.raises(CascadeError):
        output_paths(tmp_path / name, 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--width", "8"], "width"),
        (["--device", "abacus"], "abacus"),
        (["--models", "no/such/folder"], "no/such/folder"),
    ],
)
def test_errors_are_one_line(as_tiny, tmp_path, capsys, options, word):
    assert main(["generate", PROMPT, "-o", str(tmp_path / "a.png"), *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert word in last


def test_help_does_not_wait_for_torch():
    code = "import sys; from cascade.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def make(folder, out, *options):
    size = [] if "--image" in options else ["--width", "96", "--height", "64"]
    return main(
        ["generate", PROMPT, "-o", str(out), "--models", str(folder), "--steps", "2", "--steps-b", "1", *size, *options]
    )


def test_an_image_to_start_from_with_a_mask(folder, photo, tmp_path):
    mask = Image.new("L", (96, 64))
    mask.paste(255, (60, 0, 96, 64))
    mask.save(tmp_path / "mask.png")
    out = tmp_path / "out.png"
    options = ["--image", str(photo), "--mask", str(tmp_path / "mask.png"), "--strength", "0.8"]
    assert make(folder, out, *options, "--width", "96", "--height", "64") == 0
    with Image.open(out) as drawn, Image.open(photo) as source:
        assert drawn.crop((0, 0, 60, 64)).tobytes() == source.convert("RGB").crop((0, 0, 60, 64)).tobytes()
        assert drawn.crop((60, 0, 96, 64)).tobytes() != source.convert("RGB").crop((60, 0, 96, 64)).tobytes()
        recipe = json.loads(drawn.text["cascade"])
    assert (recipe["image"], recipe["mask"], recipe["strength"]) == ("photo.png", "mask.png", 0.8)


def test_an_image_noised_as_the_released_code_does(folder, photo, tmp_path):
    drawn = []
    for name, options in {"plain": [], "released": ["--as-released"]}.items():
        out = tmp_path / f"{name}.png"
        assert make(folder, out, "--image", str(photo), "--width", "96", "--height", "64", *options) == 0
        with Image.open(out) as image:
            drawn.append(image.tobytes())
            assert json.loads(image.text["cascade"]).get("as_released", False) == bool(options)
    assert drawn[0] != drawn[1]


def test_a_lora_changes_the_image_and_is_in_the_recipe(tmp_path):
    def generated(*options):
        out = tmp_path / "heart.png"
        given = ["generate", "a red circle", "-o", str(out), "--width", "64", "--height", "64", "--steps", "1"]
        assert main([*given, "--steps-b", "1", *options]) == 0
        with Image.open(out) as image:
            return image.tobytes(), json.loads(image.text["cascade"]).get("lora")

    plain, name = generated()
    assert name is None
    file = tiny.path("lora")
    by_name, name = generated("--lora", "tiny=0.8")
    assert (by_name != plain, name) == (True, ["tiny=0.8"])
    by_path, name = generated("--lora", f"{file}=0.8")
    assert (by_path == by_name, name) == (True, [f"{file.name}=0.8"])


def test_without_a_size_the_image_gives_its_proportions(as_tiny, photo, tmp_path):
    out = tmp_path / "out.png"
    options = ["--image", str(photo), "--steps", "1", "--steps-b", "1"]
    assert main(["generate", PROMPT, "-o", str(out), *options]) == 0
    with Image.open(out) as drawn:
        assert drawn.size == (384, 256)


def test_variations_and_large_images(folder, photo, tmp_path):
    out = tmp_path / "out.png"
    weights = ["--like", str(photo), "--weight", "1", "--like", str(photo), "--weight", "-0.5"]
    assert make(folder, out, *weights, "--enlarge", "4", "--tile", "256") == 0
    with Image.open(out) as drawn:
        assert drawn.size == (384, 256)
        recipe = json.loads(drawn.text["cascade"])
    assert recipe["like"] == ["photo.png", "photo.png"]
    assert (recipe["weight"], recipe["enlarge"], recipe["tile"]) == ([1.0, -0.5], 4.0, 256)


def test_image_prompts(folder, photo, tmp_path):
    def made(*options):
        out = tmp_path / "out.png"
        assert make(folder, out, *options) == 0
        with Image.open(out) as drawn:
            return drawn.tobytes(), json.loads(drawn.text["cascade"])

    plain, _ = made()
    like = ["--like", str(photo), "--like", str(photo)]
    nothing, recipe = made(*like, "--like-strength", "0")
    assert (nothing, recipe["like_strength"]) == (plain, 0)
    how = ["--like-range", "0,0.5", "--like-blocks", "style", "--like-noise", "0.2"]
    places = ["--like-mask", "0,0,0.5,1", "--like-mask", str(photo)]
    changed, recipe = made(*like, *how, *places, "--unlike", str(photo))
    assert changed != plain
    assert {name: recipe[name] for name in ("like_range", "like_blocks", "like_noise", "like_mask", "unlike")} == {
        "like_range": "0,0.5",
        "like_blocks": "style",
        "like_noise": 0.2,
        "like_mask": ["0,0,0.5,1", "photo.png"],
        "unlike": ["photo.png"],
    }
    assert made(*like, "--like-combine", "subtract", "--weight", "1", "--weight", "0.5")[0] != plain


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--like-blocks", "style"], "--like-blocks needs --like"),
        (["--like", __file__], "cannot be read as an image"),
        (["--like", "PHOTO", "--like-blocks", "colors"], "'colors' is not a range of blocks"),
        (["--like", "PHOTO", "--like-range", "0.5"], "write START,END from 0 to 1"),
        (["--like", "PHOTO", "--like-range", "0.5,0.2"], "must not be above end_percent"),
        (["--like", "PHOTO", "--like-mask", "0,0,2,1"], "is not in the image"),
        (["--like", "PHOTO", *["--like-mask", "0,0,1,1"] * 2], "one --like-mask for all --like, or one for each"),
    ],
)
def test_image_prompts_that_cannot_be_are_refused(folder, photo, tmp_path, capsys, options, word):
    options = [str(photo) if option == "PHOTO" else option for option in options]
    assert make(folder, tmp_path / "out.png", *options) == 1
    assert word in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--mask", "mask.png"], "--mask needs --image, the image that it belongs to, or an inpainting ControlNet"),
        (["--image", "nothing.png"], "nothing.png"),
        (["--image", __file__], "cannot be read as an image"),
        (["--weight", "2"], "Each --like has one --weight"),
        (["--enlarge", "100"], "--enlarge takes 0.25 to 16"),
        (["--tile", "8"], "at least 256"),
    ],
)
def test_what_is_wrong_with_images_is_said(folder, tmp_path, capsys, options, word):
    assert make(folder, tmp_path / "out.png", *options) == 1
    assert word in capsys.readouterr().err.splitlines()[-1]
