"""`reconstruct` and `mix`: from images to images."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from cascade.cli import main
from cascade.images.resize import COMPRESSION


@pytest.fixture
def second(tmp_path):
    path = tmp_path / "second.jpg"
    Image.linear_gradient("L").rotate(90).resize((50, 80)).save(path)
    return path


def small(folder):
    return ["--models", str(folder), "--width", "96", "--height", "64", "--steps", "2", "--steps-b", "1"]


@pytest.mark.parametrize("option", ["--comparison", "--beside"])
def test_reconstruct(folder, photo, tmp_path, capsys, option):
    out = tmp_path / "again.png"
    given = ["reconstruct", str(photo), "--models", str(folder), "-o", str(out)]
    assert main([*given, "--compression", "32", option]) == 0
    with Image.open(out) as image:
        assert image.size == (96 * 2 + 2, 64)
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{re.escape(str(out))}: latent 16 x 2 x 3, PSNR [\d.]+ dB, SSIM -?[\d.]+\n", said)


def test_reconstruct_with_options_of_stage_b(folder, photo, tmp_path):
    def made(name, *options):
        out = tmp_path / name
        assert main(["reconstruct", str(photo), "--models", str(folder), "-o", str(out), *options]) == 0
        with Image.open(out) as image:
            return image.tobytes(), json.loads(image.text["cascade"])

    plain, recipe = made("plain.png")
    assert recipe == {
        "reconstructed": "photo.png",
        "seed": 0,
        "compression": COMPRESSION,
        "stage_b": {"steps": 10, "cfg": 1.1},
    }
    other, recipe = made("other.png", "--steps-b", "2", "--cfg-b", "1")
    assert recipe["stage_b"] == {"steps": 2, "cfg": 1.0}
    assert other != plain


def test_help_names_the_default_compression(capsys):
    with pytest.raises(SystemExit):
        main(["reconstruct", "--help"])
    assert f"default {COMPRESSION}" in " ".join(capsys.readouterr().out.split())


def test_mix(folder, photo, second, tmp_path, capsys):
    images = [str(photo), str(second)]
    assert main(["mix", *images, "-o", str(tmp_path / "mix.png"), "--frames", "3", *small(folder)]) == 0
    paths = [tmp_path / f"mix-{i}.png" for i in (1, 2, 3)]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert len({path.read_bytes() for path in paths}) == 3
    assert main(["mix", images[0], "nothing.png", *small(folder)]) == 1
    assert "nothing.png" in capsys.readouterr().err


def test_the_blend_factor_and_its_old_name(folder, photo, second, tmp_path):
    def made(name, *options):
        out = tmp_path / name
        assert main(["mix", str(photo), str(second), "-o", str(out), *options, *small(folder)]) == 0
        with Image.open(out) as image:
            return image.tobytes(), json.loads(image.text["cascade"])["blend_factor"]

    assert made("a.png", "--blend-factor", "0.2") == made("b.png", "--share", "0.2")
    half, factor = made("c.png")
    assert factor == 0.5
    assert made("d.png", "--blend-factor", "0.5")[0] == half
    assert made("e.png", "--blend-factor", "0.2")[0] != half


def test_a_blend_factor_outside_is_refused(photo, second, capsys):
    with pytest.raises(SystemExit):
        main(["mix", str(photo), str(second), "--blend-factor", "1.5"])
    assert "--blend-factor: 1.5 is not 0 to 1" in capsys.readouterr().err
