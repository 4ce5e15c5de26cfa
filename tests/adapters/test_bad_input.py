"""Files that are refused, and what is said of them."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from cascade.adapters import (
    WRITABLE,
    Applied,
    attach,
    norms_by_block,
    read_lora,
    save_lora,
    summary,
    to_tensors,
)
from cascade.adapters.changes import Full, LowRank
from cascade.adapters.lora import Lora, Token
from cascade.errors import (
    BrokenCheckpoint,
    CheckpointError,
    IncompatibleCheckpoint,
    UnknownCheckpoint,
    UnsafeCheckpoint,
)
from cascade.models import STAGE_C_1B, STAGE_C_3_6B
from tests.adapters import loras
from tests.support import SHAPES, reference_weights

STEM = "lora_unet_down_blocks_0_2_attention_attn_to_q"
DOWN, UP = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"


def pair(stem: str = STEM, down: tuple[int, ...] = (2, 8), up: tuple[int, ...] = (8, 2)) -> dict[str, Tensor]:
    return {f"{stem}.lora_down.weight": torch.ones(down), f"{stem}.lora_up.weight": torch.ones(up)}


def sd(name: str, width: int) -> dict[str, Tensor]:
    return pair(f"lora_unet_{name}_attn2_to_k", (1, width), (320, 1))


BROKEN = {
    "rank 0": (pair(down=(0, 8), up=(8, 0)), "rank 0"),
    "rank 0 above": (pair(down=(0, 8), up=(8, 1)), "rank 0"),
    "rank 0 below": (pair(down=(1, 8), up=(8, 0)), "rank 0"),
    "no rows": (pair(down=(1, 8), up=(0, 1)), "make no low-rank change"),
    "no rows of rank 2": (pair(up=(0, 2)), "make no low-rank change"),
    "no columns": (pair(down=(2, 0)), "make no low-rank change"),
    "no rows of rank 0": (pair(down=(0, 8), up=(0, 0)), "rank 0"),
    "no filters": (pair(down=(2, 8, 0, 1), up=(8, 2, 1, 1)), "make no low-rank change"),
    "NaN": (pair() | {UP: torch.full((8, 2), torch.nan)}, "NaN or infinity"),
    "infinity": (pair() | {DOWN: torch.full((2, 8), torch.inf)}, "NaN or infinity"),
    "half": ({DOWN: torch.ones(2, 8)}, "has only down"),
    "ranks": (pair(up=(8, 3)), "make no low-rank change"),
    "alpha": (pair() | {f"{STEM}.alpha": torch.ones(3)}, "alpha has the shape"),
    "alpha NaN": (pair() | {f"{STEM}.alpha": torch.tensor(torch.nan)}, "NaN or infinity"),
    "integers": ({name: value.int() for name, value in pair().items()}, "make no low-rank change"),
    "vectors": (pair(down=(2,), up=(2,)), "make no low-rank change"),
    "no tensors": ({}, "no tensors"),
    "released gap": ({"weights.1.lora_down": torch.ones(1, 8), "weights.1.lora_up": torch.ones(8, 1)}, "missing"),
    "released half": ({"weights.0.lora_down": torch.ones(1, 8)}, "missing"),
    "released rank 0": ({"weights.0.lora_down": torch.ones(0, 8), "weights.0.lora_up": torch.ones(8, 0)}, "rank 0"),
    "released without rows": (
        {"weights.0.lora_down": torch.ones(1, 8), "weights.0.lora_up": torch.ones(0, 1)},
        "make no low-rank change",
    ),
    "released integers": (
        {"weights.0.lora_down": torch.ones(1, 8), "weights.0.lora_up": torch.ones(8, 1).int()},
        "make no low-rank change",
    ),
    "complex alpha": (pair() | {f"{STEM}.alpha": torch.tensor(1 + 1j)}, "stored as torch.complex64"),
    "no vectors": ({"clip_g": torch.ones(0, 1280)}, "no vectors"),
    "rows": ({"embeddings.embeddings": torch.ones(1, 8), "embeddings.indices": torch.tensor([60000])}, "49408"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file(case: str) -> None:
    tensors, message = BROKEN[case]
    with pytest.raises(BrokenCheckpoint, match=message):
        read_lora(tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (sd("down_blocks_0_attentions_0_transformer_blocks_0", 768), "Stable Diffusion 1.5,"),
        (sd("down_blocks_0_attentions_0_transformer_blocks_0", 1024), "Stable Diffusion 2,"),
        (sd("down_blocks_1_attentions_0_transformer_blocks_0", 2048), "SDXL"),
        (sd("input_blocks_4_1_transformer_blocks_0", 2048), "SDXL"),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "SDXL"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv"), "Flux"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q"), "Flux"),
        (pair("lora_unet_joint_blocks_0_x_block_attn_qkv"), "Stable Diffusion 3"),
        ({f"{STEM}.on_input": torch.ones(2, 8)}, "LyCORIS"),
        ({"clip_g": torch.ones(1, 1280), "clip_l": torch.ones(1, 768)}, "SDXL"),
        ({"bundle_emb.a.clip_l": torch.ones(1, 768)}, "SDXL"),
        ({"weight": torch.ones(3, 3)}, "not a LoRA for Stable Cascade"),
        (pair() | {"extra.weight": torch.ones(1)}, "1 of its 3 tensors are unknown: extra.weight"),
    ],
)
def test_something_else_is_named(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UnknownCheckpoint, match=message):
        read_lora(tensors)


def test_the_wrong_size_is_named() -> None:
    for made, config in (("3.6B", STAGE_C_1B), ("1B", STAGE_C_3_6B)):
        with pytest.raises(IncompatibleCheckpoint, match=f"made for Stage C, {made}, and this is Stage C"):
            read_lora(loras.released(made), config=config)
        net = loras.stage_c({"3.6B": "1B", "1B": "3.6B"}[made])
        lora = read_lora(loras.kohya(made))
        with pytest.raises(IncompatibleCheckpoint, match=rf"wide \({made}\), and this one is \d+ wide"):
            loras.check_fits(lora, "stage_c", net)


def test_another_size_needs_a_config() -> None:
    with pytest.raises(IncompatibleCheckpoint, match="32 wide, a size that was not released"):
        read_lora(loras.official())


def test_other_filters_are_named() -> None:
    tensors = loras.released("1B")
    more = tensors | {"weights.64.lora_down": torch.ones(1, 1536), "weights.64.lora_up": torch.ones(1536, 1)}
    with pytest.raises(IncompatibleCheckpoint, match=r"65 matrices .* 64 of attention .* other filters than .attn"):
        read_lora(more)


def test_a_text_encoder_of_another_model_does_not_fit() -> None:
    lora = read_lora(pair("lora_te_text_model_encoder_layers_0_mlp_fc1", (1, 768), (3072, 1)))
    net = loras.stage_c("text")
    with pytest.raises(IncompatibleCheckpoint, match="does not fit Text encoder, CLIP bigG/14: 1 of its 1 changes"):
        loras.check_fits(lora, "text_encoder", net)


def test_a_block_that_is_not_there_is_named() -> None:
    net = loras.small_stage_c()
    lora = read_lora(pair("lora_unet_down_blocks_0_92_attention_attn_to_q", (1, 32), (32, 1)))
    with pytest.raises(IncompatibleCheckpoint, match=r"down_blocks.0.92.attention.attn.to_q.weight is not there"):
        attach([Applied(lora)], stage_c=net)


def test_one_change_under_two_names_is_refused() -> None:
    with pytest.raises(IncompatibleCheckpoint, match="the same"):
        read_lora(pair() | pair("lora_prior_unet_down_blocks_0_2_attention_to_q"))


def test_a_change_of_the_token_table_that_is_written_as_a_convolution() -> None:
    """`up` picks a row, `down` has four dimensions: as much a change of the table as with two."""
    stem = "text_encoder.text_model.embeddings.token_embedding"
    lora = read_lora(pair(stem, (1, 8, 1, 1), (3, 1)) | {f"{stem}.lora_up.weight": torch.eye(3)[:, :1]})
    [change] = lora.changes["text_encoder"].values()
    assert change.fits(torch.Size((3, 8)))
    assert torch.equal(change.delta(torch.zeros(3, 8)), torch.eye(3)[:, :1].expand(3, 8))


def test_duplicate_tokens_are_refused() -> None:
    with pytest.raises(IncompatibleCheckpoint, match="twice"):
        read_lora({"bundle_emb.[a].clip_g": torch.ones(1, 8), "bundle_emb.[A].clip_g": torch.ones(1, 8)})
    rows = {"embeddings.embeddings": torch.ones(2, 8), "embeddings.indices": torch.tensor([49408, 49408])}
    with pytest.raises(IncompatibleCheckpoint, match="twice"):
        read_lora(rows)
    with pytest.raises(IncompatibleCheckpoint, match="1 of its tokens need a name, 2 were given"):
        read_lora({"clip_g": torch.ones(1, 8)}, tokens=[("[a]", None), ("[b]", None)])


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = save(pair())
    file = tmp_path / "lora.safetensors"
    for length in range(0, len(whole), 17):
        file.write_bytes(whole[:length])
        with pytest.raises(BrokenCheckpoint):
            read_lora(file)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


def test_a_pickle_that_wants_to_run_code_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "lora.pt"
    file.write_bytes(pickle.dumps({"weights.0.lora_down": Trap()}, protocol=2))
    with pytest.raises(UnsafeCheckpoint, match="eval"):
        read_lora(file)


def test_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        read_lora("nowhere.safetensors")


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "{", '{"tokens": 3}', '{"tokens": [{"text": 1}]}', '{"training": []}', '{"tokens": [1]}']
)
def test_damaged_metadata(text: str, tmp_path: Path) -> None:
    save_file(pair(), tmp_path / "a.safetensors", {"cascade.lora": text})
    with pytest.raises(BrokenCheckpoint, match="metadata"):
        read_lora(tmp_path / "a.safetensors")


def test_what_a_format_cannot_hold_is_not_written(tmp_path: Path) -> None:
    low = LowRank(torch.ones(1, 2048), torch.ones(2048, 1), 1.0)
    columns = LowRank(low.down, low.up, 1.0, torch.ones(1, 2048))
    query = "down_blocks.0.2.attention.attn.to_q.weight"
    cases = [
        ("onetrainer", Lora({"stage_c": {"clf.1.bias": Full(torch.ones(16))}}), "no place for the full change"),
        ("peft", Lora({"stage_c": {query: columns}}), "no place for the DoRA"),
        ("released", Lora({"stage_c": {"down_blocks.0.2.kv_mapper.1.weight": low}}), "only hold attention's matrices"),
        ("released", Lora({"stage_c": {query: columns}}), "without DoRA"),
        ("kohya", Lora({}, (Token("[a]", torch.ones(1, 8), "dog"),)), "make it absolute"),
        ("kohya", Lora({}, (Token("", torch.ones(1, 8)),)), "without a name"),
        ("released", Lora({}, (Token("[a]", torch.ones(2, 8)),)), "one vector"),
        ("embedding", Lora({}, (Token("[a]", torch.ones(1, 8), "dog"),)), "stand-alone"),
    ]
    for format, lora, message in cases:
        with pytest.raises(CheckpointError, match=message):
            save_lora(lora, tmp_path / "a.safetensors", format=format)
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="format must be one of"):
        to_tensors(Lora(), "other")


def test_a_network_is_named(tmp_path: Path) -> None:
    save_file(reference_weights(SHAPES["stage_c_small"]), tmp_path / "a.safetensors")
    with pytest.raises(UnknownCheckpoint, match="this is a network, not a LoRA: Stage C, custom, float32"):
        read_lora(tmp_path / "a.safetensors")


NAMES = [
    *(f"{STEM}.{ending}" for ending in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale", "diff", "diff_b")),
    *(f"prior.clf.1.{ending}" for ending in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight")),
    *("stage_c.clf.1.bias.delta", "text_encoder.text_model.embeddings.token_embedding.rows"),
    *("text_encoder.text_model.embeddings.token_embedding.row_indices", "bundle_emb.[a].clip_g", "clip_g"),
    *("lora_unet_up_blocks_1_2_attention_attn_in_proj.lora_down.weight", "weights.0.lora_down", "weights.0.lora_up"),
    *("lora_unet_up_blocks_1_2_attention_attn_in_proj.lora_up.weight", "embeddings.embeddings", "embeddings.indices"),
]
NET = loras.small_stage_c()
SHAPE = st.lists(st.sampled_from([0, 1, 2, 3, 32]), max_size=4)
DTYPE = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool])


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(NAMES), st.tuples(SHAPE, DTYPE), min_size=1, max_size=6))
def test_any_mixture_of_names_and_shapes_is_read_or_refused(entries: dict[str, tuple[list[int], torch.dtype]]) -> None:
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in entries.items()}
    try:
        lora = read_lora(tensors, config=loras.SMALL)
        attach([Applied(lora)], stage_c=NET).detach()
        for format in WRITABLE:
            with suppress(CheckpointError):
                to_tensors(lora, format, loras.SMALL)
    except CheckpointError:
        pass


def test_a_peft_folder_tells_its_alpha(tmp_path: Path) -> None:
    tensors = {"base_model.model.clf.1.lora_A.weight": torch.ones(4, 32, 1, 1)}
    tensors["base_model.model.clf.1.lora_B.weight"] = torch.ones(16, 4, 1, 1)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    file = tmp_path / "adapter_config.json"
    for text, scale in (('{"lora_alpha": 8}', 2.0), ('{"lora_alpha": 8, "use_rslora": true}', 4.0), (None, 1.0)):
        file.unlink(missing_ok=True)
        if text:
            file.write_text(text, encoding="utf-8")
        for source in (tmp_path, tmp_path / "adapter_model.safetensors"):
            change = read_lora(source).changes["stage_c"]["clf.1.weight"]
            assert isinstance(change, LowRank)
            assert change.scale == scale
    for text in ("", "[]", "{}", '{"lora_alpha": "x"}', '{"lora_alpha": 8, "alpha_pattern": {"clf": 1}}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match="adapter_config"):
            read_lora(tmp_path)


def test_convolutions_are_not_written_in_the_released_form() -> None:
    lora = read_lora(pair("stage_c.down_blocks.0.2.attention.attn.to_q", (2, 32, 1, 1), (32, 2, 1, 1)))
    flat = read_lora(pair("stage_c.down_blocks.0.2.attention.attn.to_q", (2, 4, 8), (32, 2, 1)))
    for each in (lora, flat):
        with pytest.raises(IncompatibleCheckpoint, match="only holds matrices"):
            to_tensors(each, "released", loras.SMALL)


def test_a_high_rank_takes_no_more_memory_than_its_file() -> None:
    """[rank, rank] would be 3.6 TB."""
    name = f"{STEM}.lora_up.weight"
    lora = read_lora({name: torch.ones(1, 950_000), DOWN: torch.ones(950_000, 1)})
    [norm] = norms_by_block(lora).values()
    assert norm == pytest.approx(950_000)


def test_many_rows_of_the_token_table_stay_in_our_format(tmp_path: Path) -> None:
    rows = {"embeddings.embeddings": torch.ones(40_000, 1), "embeddings.indices": torch.arange(40_000)}
    lora = read_lora(rows)
    with pytest.raises(IncompatibleCheckpoint, match="it changes 40,000 tokens"):
        save_lora(lora, tmp_path / "lora.safetensors", format="kohya")
    save_lora(lora, tmp_path / "lora.safetensors", format="cascade")


def test_a_format_in_metadata_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(pair(), path, metadata={"cascade.kind": "lora", "cascade.lora": '{"format": [[]]}'})
    with pytest.raises(BrokenCheckpoint, match="does not describe a LoRA"):
        read_lora(path)


def test_a_token_that_cannot_be_printed(tmp_path: Path) -> None:
    lora = read_lora({"clip_g": torch.ones(1, 8)}, tokens=[("\ud800", None)])
    assert "\n".join(summary(lora)).encode("utf-8")
    with pytest.raises(IncompatibleCheckpoint, match="no file can hold a token named"):
        save_lora(lora, tmp_path / "lora.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("format", WRITABLE[:-1])
def test_float8_beside_other_types(dtype: torch.dtype, format: str, tmp_path: Path) -> None:
    """torch neither compares nor joins them."""
    tensors: dict[str, Tensor] = {}
    for matrix in "qkv":
        tensors |= pair(f"stage_c.down_blocks.0.2.attention.attn.to_{matrix}", (2, 32), (32, 2))
    name = "stage_c.down_blocks.0.2.attention.attn.to_k.lora_down.weight"
    lora = read_lora(tensors | {name: torch.full((2, 32), 0.5).to(dtype)})
    save_lora(lora, tmp_path / "lora.safetensors", format=format, config=loras.SMALL)
    again = read_lora(tmp_path / "lora.safetensors", config=loras.SMALL).changes["stage_c"]
    weight = torch.zeros(32, 32)
    key = "down_blocks.0.2.attention.attn.to_k.weight"
    assert torch.equal(again[key].delta(weight), lora.changes["stage_c"][key].delta(weight))
    assert torch.equal(again[key].delta(weight), torch.full((32, 32), 1.0))


def test_float8_rows_of_the_token_table() -> None:
    stem = "text_encoder.text_model.embeddings.token_embedding"
    up = torch.eye(3)[:, :1].to(torch.float8_e4m3fn)
    lora = read_lora(pair(stem, (1, 8), (3, 1)) | {f"{stem}.lora_up.weight": up})
    [change] = lora.changes["text_encoder"].values()
    assert torch.equal(change.delta(torch.zeros(3, 8)), torch.eye(3)[:, :1].expand(3, 8))


TOKENS: dict[str, tuple[dict[str, torch.Tensor], list[str | None], str]] = {
    "tokens": (
        {f"bundle_emb.[{number}].clip_g": torch.ones(1, 1) for number in range(1001)},
        [None] * 1001,
        "it has 1,001 learned tokens",
    ),
    "rows of the released trainer": (
        # Which took the square of their number, hours
        {
            "embeddings.embeddings": torch.ones(200_000, 1),
            "embeddings.indices": torch.arange(49408, 249_408).flip(0),
        },
        [],
        "it has 200,000 new tokens",
    ),
    "patterns": (
        # Each of which is a search of the whole vocabulary
        {f"bundle_emb.[{number}].clip_g": torch.ones(1, 1) for number in range(60)},
        [f".+.+{number % 7}</w>" for number in range(60)],
        "60 of its tokens begin as patterns",
    ),
}


@pytest.mark.parametrize("case", TOKENS)
def test_small_files_of_tokens_that_take_hours(case: str, tmp_path: Path) -> None:
    tensors, initializers, problem = TOKENS[case]
    names = [name.split(".")[1] for name in tensors]
    tokens = [{"text": name, "initializer": start} for name, start in zip(names, initializers)]
    path = tmp_path / "file.safetensors"
    save_file(tensors, path, metadata={"cascade.lora": json.dumps({"tokens": tokens})})
    with pytest.raises(CheckpointError, match=problem):
        read_lora(path)
