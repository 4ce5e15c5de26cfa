"""`reconstruct` and `mix`: from images to images."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from cascade.checkpoints import save_model
from cascade.cli import main
from tests.small import part

KINDS = ("text_encoder", "image_encoder", "effnet", "stage_c", "stage_b", "stage_a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save_model(part(kind), root / f"{kind}.safetensors")
    for name, size in (("first.png", (96, 64)), ("second.jpg", (50, 80))):
        Image.linear_gradient("L").resize(size).save(root / name)
    return root


def test_reconstruct(folder, tmp_path, capsys):
    out = tmp_path / "again.png"
    given = ["reconstruct", str(folder / "first.png"), "--models", str(folder), "-o", str(out)]
    assert main([*given, "--compression", "32", "--beside"]) == 0
    with Image.open(out) as image:
        assert image.size == (96 * 2 + 2, 64)
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{re.escape(str(out))}: latent 16 x 2 x 3, PSNR [\d.]+ dB, SSIM -?[\d.]+\n", said)


def test_mix(folder, tmp_path, capsys):
    images = [str(folder / name) for name in ("first.png", "second.jpg")]
    small = ["--models", str(folder), "--width", "96", "--height", "64", "--steps", "2", "--steps-b", "1"]
    assert main(["mix", *images, "-o", str(tmp_path / "mix.png"), "--frames", "3", *small]) == 0
    paths = [tmp_path / f"mix-{i}.png" for i in (1, 2, 3)]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert len({path.read_bytes() for path in paths}) == 3
    assert main(["mix", images[0], "nothing.png", *small]) == 1
    assert "nothing.png" in capsys.readouterr().err
