"""Which networks the tiny cascade's settings files mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade import tiny
from cascade.errors import InvalidConfig
from cascade.tiny.train import part_config


def test_a_network_trained_in_the_folder_comes_before_the_shipped_one(tmp_path: Path) -> None:
    settings = part_config("lora_heart", tmp_path).settings
    assert (settings.stage_c, settings.effnet) == (tiny.path("stage_c"), tiny.path("effnet"))
    trained = tmp_path / "encoder_detail" / "effnet.safetensors"
    trained.parent.mkdir()
    trained.touch()
    settings = part_config("lora_heart", tmp_path).settings
    assert (settings.stage_c, settings.effnet) == (tiny.path("stage_c"), trained)


def test_a_network_that_it_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="stage_c: the tiny cascade has no 'stage_d'; it has text_encoder, "):
        part_config("lora_heart", tmp_path, changes={"lora.stage_c": "tiny:stage_d"})
