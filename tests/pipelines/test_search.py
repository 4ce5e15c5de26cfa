from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

from cascade.checkpoints import load_model, save_model
from cascade.errors import CheckpointError
from cascade.models import StageC, StageCConfig, initialize
from cascade.pipelines import find_parts
from tests.small import CONFIGS, part

KINDS = ("text_encoder", "stage_c", "stage_b", "stage_a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks under names that say nothing, in folders, among other things."""
    root = tmp_path_factory.mktemp("models")
    for i, kind in enumerate(KINDS):
        (root / str(i)).mkdir()
        save_model(part(kind), root / str(i) / f"{i}.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2)}, root / "0" / "stage_c.safetensors")
    (root / "0" / "page.safetensors").write_text("<html>", encoding="utf-8")
    (root / "notes.txt").write_text("stage_b", encoding="utf-8")
    return root


def test_found_by_content(folder):
    assert find_parts([folder]) == {kind: folder / str(i) / f"{i}.safetensors" for i, kind in enumerate(KINDS)}


def test_the_larger_of_two_unless_the_smaller_is_named_first(folder, tmp_path):
    deeper = StageCConfig.from_dict(
        CONFIGS["stage_c"].to_dict() | {"levels": ({"width": 16, "heads": 2, "depth": 3},) * 2}
    )
    save_model(initialize(StageC(deeper)), tmp_path / "large.safetensors")
    shutil.copy(folder / "1" / "1.safetensors", tmp_path / "small.safetensors")
    assert find_parts([tmp_path])["stage_c"] == tmp_path / "large.safetensors"
    assert find_parts([tmp_path / "small.safetensors", tmp_path])["stage_c"] == tmp_path / "small.safetensors"


def test_a_text_encoder_of_another_width_is_left_out(folder, tmp_path):
    wider = StageCConfig.from_dict(CONFIGS["stage_c"].to_dict() | {"clip_text": 24})
    save_model(initialize(StageC(wider)), tmp_path / "c.safetensors")
    found = find_parts([tmp_path, folder])
    assert found["stage_c"] == tmp_path / "c.safetensors"
    assert "text_encoder" not in found


def test_a_diffusers_folder_is_taken_as_a_whole(folder, tmp_path):
    prior = tmp_path / "text_encoder"
    part("text_encoder").save_pretrained(prior)
    found = find_parts([tmp_path])
    assert found == {"text_encoder": prior}
    assert torch.equal(
        load_model(prior).state_dict()["text_projection.weight"],
        part("text_encoder").state_dict()["text_projection.weight"],
    )


def test_what_is_named_must_be_there_and_a_network(folder):
    with pytest.raises(FileNotFoundError):
        find_parts([folder / "nothing"])
    with pytest.raises(CheckpointError, match="LoRA"):
        find_parts([folder / "0" / "stage_c.safetensors"])
