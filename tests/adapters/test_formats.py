"""Every trainer's file is read whole, and the golden LoRA survives each format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade.adapters import Applied, attach, merge, read_lora, save_lora, to_tensors
from cascade.adapters.changes import Full, LowRank, Rows
from cascade.adapters.lora import TABLE, Lora, Token
from tests.adapters import loras
from tests.support import golden, relative_error

FORMATS = ("comfyui", "cascade", "kohya", "onetrainer", "onetrainer_diffusers", "omi", "peft", "released")
NAME = [("[thing]", "^dog</w>")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def whole(lora: Lora) -> Lora:
    """With whole vectors, as formats want them that have no start."""
    return Lora(lora.changes, tuple(Token(t.text, t.vectors) for t in lora.tokens), lora.training, lora.format)


@pytest.mark.parametrize("size", ["3.6B", "1B"])
@pytest.mark.parametrize("trainer", loras.TRAINERS)
def test_every_tensor_of_every_trainer_matches(trainer: str, size: str) -> None:
    tensors = loras.TRAINERS[trainer](size)
    lora = read_lora(tensors)
    factors = sum("lora_down" in name or "lora_A" in name for name in tensors)
    changes = {kind: dict(changes) for kind, changes in lora.changes.items()}
    if trainer == "released":
        assert len(changes["stage_c"]) == 2 * factors == {"3.6B": 256, "1B": 128}[size]
        assert isinstance(changes["text_encoder"][TABLE], Rows)
    else:
        assert sum(map(len, changes.values())) == factors
        assert lora.format == {"dora": "onetrainer"}.get(trainer, trainer.partition("_wrapped")[0])
    nets = {"stage_c": loras.stage_c(size), "text_encoder": loras.stage_c("text")}
    for kind in changes:
        loras.check_fits(lora, kind, nets[kind])
    assert lora.base == size
    assert len(lora.tokens) == sum("bundle_emb" in name or name.endswith("indices") for name in tensors)
    expected = sum("dora_scale" in name or "magnitude" in name for name in tensors)
    assert sum(getattr(c, "dora", None) is not None for own in changes.values() for c in own.values()) == expected


@pytest.mark.numeric
def test_the_golden_lora_changes_the_output_as_in_the_reference() -> None:
    net = loras.small_stage_c()
    assert relative_error(loras.golden_output(net), golden("lora_official")["out_base"]) < 1e-4
    lora = read_lora(loras.official(), config=loras.SMALL)
    with attach([Applied(lora)], stage_c=net):
        assert relative_error(loras.golden_output(net), golden("lora_official")["out_lora"]) < 1e-4
    assert relative_error(loras.golden_output(net), golden("lora_official")["out_base"]) < 1e-4


@pytest.mark.parametrize("format", FORMATS)
def test_the_golden_lora_survives_each_format_and_back(format: str, tmp_path: Path) -> None:
    lora = whole(read_lora(loras.official(), config=loras.SMALL, tokens=NAME))
    save_lora(lora, tmp_path / "there.safetensors", format=format, config=loras.SMALL)
    there = read_lora(tmp_path / "there.safetensors", config=loras.SMALL)
    assert there.format == format
    save_lora(there, tmp_path / "back.safetensors", format="released", config=loras.SMALL)
    tensors, official = load_file(tmp_path / "back.safetensors"), loras.official()
    assert set(tensors) == set(official)
    back = read_lora(tmp_path / "back.safetensors", config=loras.SMALL)
    for each in (there, back):
        assert [token.text for token in each.tokens] == ["[thing]"]
        net = loras.small_stage_c()
        merge([Applied(each)], net)
        assert relative_error(loras.golden_output(net), golden("lora_official")["out_lora"]) < 1e-4
    rows = dict(zip(tensors["embeddings.indices"].tolist(), tensors["embeddings.embeddings"], strict=True))
    for index, vector in zip(official["embeddings.indices"].tolist(), official["embeddings.embeddings"], strict=True):
        assert torch.allclose(rows[index], vector)


def test_texts_and_initializers_go_through_the_released_form_and_ours(tmp_path: Path) -> None:
    lora = read_lora(loras.official(), config=loras.SMALL, tokens=NAME)
    for format in ("cascade", "released"):
        save_lora(lora, tmp_path / "a.safetensors", format=format, config=loras.SMALL)
        read = read_lora(tmp_path / "a.safetensors", config=loras.SMALL)
        assert [(token.text, token.initializer) for token in read.tokens] == NAME


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_of_the_released_trainer_is_read(nested: bool, tmp_path: Path) -> None:
    official = loras.official()
    torch.save({"state_dict": official} if nested else official, tmp_path / "lora.pt")
    lora = read_lora(tmp_path / "lora.pt", config=loras.SMALL)
    assert len(lora.changes["stage_c"]) == 40
    assert lora.tokens[0].text == ""


@pytest.mark.parametrize("format", FORMATS[:-1])
def test_each_kind_of_change_comes_back_the_same(format: str, tmp_path: Path) -> None:
    stem = "down_blocks.0.2.attention.attn.to_q.weight"
    weight = torch.randn(8, 6)
    changes = {
        stem: LowRank(torch.randn(2, 6), torch.randn(8, 2), 0.5, torch.rand(8, 1)),
        "up_upscalers.0.1.blocks.1.weight": LowRank(torch.randn(2, 6, 1, 1), torch.randn(8, 2, 1, 1), 4.0),
        "text_projection.weight": LowRank(torch.randn(1, 6), torch.randn(8, 1), 1.0),
    }
    lora = Lora(
        {
            "stage_c": dict(list(changes.items())[:2]),
            "text_encoder": {"text_projection.weight": changes["text_projection.weight"]},
        }
    )
    save_lora(lora, tmp_path / "a.safetensors", format=format)
    assert (8 + int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")) % 64 == 0
    read = read_lora(tmp_path / "a.safetensors")
    assert {kind: set(own) for kind, own in read.changes.items()} == {k: set(own) for k, own in lora.changes.items()}
    for kind, own in lora.changes.items():
        for name, change in own.items():
            like = weight if change.up.dim() == 2 else weight[:, :, None, None]  # type: ignore[union-attr]
            assert relative_error(read.changes[kind][name].delta(like), change.delta(like)) < 1e-6


def test_full_changes_are_kept_by_those_that_have_a_place_for_them() -> None:
    full = {"clf.1.weight": Full(torch.randn(4, 3, 1, 1)), "clf.1.bias": Full(torch.randn(4))}
    gamma = {"down_blocks.0.0.channelwise.2.gamma": Full(torch.randn(1, 1, 1, 8))}
    for format, changes in (("comfyui", full | gamma), ("cascade", full | gamma), ("kohya", full)):
        read = read_lora(to_tensors(Lora({"stage_c": changes}), format))
        for name, change in changes.items():
            assert torch.equal(read.changes["stage_c"][name].value, change.value)  # type: ignore[union-attr]


def test_what_the_default_format_calls_things() -> None:
    low = LowRank(torch.randn(1, 6), torch.randn(8, 1), 1.0)
    changes = {
        "stage_c": {
            "down_blocks.0.2.attention.attn.to_q.weight": low,
            "clf.1.bias": Full(torch.randn(4)),
            "up_blocks.1.0.channelwise.2.gamma": Full(torch.randn(1, 1, 1, 8)),
        },
        "text_encoder": {
            "text_model.encoder.layers.3.mlp.fc1.weight": low,
            "text_projection.weight": low,
            "text_model.final_layer_norm.weight": Full(torch.randn(6)),
            TABLE: Rows(torch.tensor([5]), torch.randn(1, 6)),
        },
    }
    tensors = to_tensors(Lora(changes, (Token("[thing]", torch.randn(1, 6)),)), "comfyui")
    encoder = "text_encoders.clip_g.transformer.text_model"
    low_rank = (
        "lora_prior_unet_down_blocks_0_2_attention_attn_to_q",
        "lora_prior_te_text_model_encoder_layers_3_mlp_fc1",
        "lora_prior_te_text_projection",
        f"{encoder}.embeddings.token_embedding",
    )
    assert set(tensors) == {
        *(f"{name}{ending}" for name in low_rank for ending in (".lora_down.weight", ".lora_up.weight", ".alpha")),
        "diffusion_model.clf.1.diff_b",
        "diffusion_model.up_blocks.1.0.channelwise.2.gamma.diff",
        f"{encoder}.final_layer_norm.diff",
        "bundle_emb.[thing].clip_g",
    }
    read = read_lora(tensors)
    assert {kind: set(own) for kind, own in read.changes.items()} == {kind: set(own) for kind, own in changes.items()}
    assert isinstance(read.changes["text_encoder"][TABLE], Rows)


def test_a_fused_matrix_by_name_is_taken_apart() -> None:
    stem = "lora_unet_up_blocks_1_2_attention_attn_in_proj"
    up = torch.randn(12, 2)
    lora = read_lora({f"{stem}.lora_down.weight": torch.randn(2, 4), f"{stem}.lora_up.weight": up})
    ups = [lora.changes["stage_c"][f"up_blocks.1.2.attention.attn.to_{m}.weight"].up for m in "qkv"]  # type: ignore[union-attr]
    assert torch.equal(torch.cat(ups), up)


def test_a_stand_alone_embedding(tmp_path: Path) -> None:
    vectors = torch.randn(4, 1280)
    save_file({"clip_g": vectors}, tmp_path / "thing.safetensors")
    lora = read_lora(tmp_path / "thing.safetensors", tokens=[("[thing]", None)])
    assert lora.format == "embedding"
    assert lora.tokens[0].text == "[thing]"
    assert torch.equal(to_tensors(lora, "embedding")["clip_g"], vectors)
    assert torch.equal(read_lora(to_tensors(lora, "onetrainer")).tokens[0].vectors, vectors)
