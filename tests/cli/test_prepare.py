"""`prepare`: what a training from a settings file reads is there before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cascade.cli import main

SETTINGS = """
task: stage_c
output: runs/owls
steps: 1
batch_size: 2
precision: float32
stage_c:
  images: {source: folder, path: images, size: 96}
  cache: cache
  start: tiny:stage_c
  text_encoder: tiny:text_encoder
  image_encoder: tiny:image_encoder
  train_text_encoder: false
  train_image_encoder: false
  effnet: tiny:effnet
  effnet_size: 64
"""


def test_the_training_reads_what_was_prepared_with_the_shipped_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for name, color in (("a red square", "red"), ("a blue square", "blue")):
        Image.new("RGB", (128, 96), color).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "owls.yaml").write_text(SETTINGS, encoding="utf-8")
    file = [str(tmp_path / "owls.yaml"), "--folder", str(tmp_path)]
    assert main(["prepare", *file]) == 0
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert shards
    assert main(["train", *file]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == shards
    assert capsys.readouterr().out
