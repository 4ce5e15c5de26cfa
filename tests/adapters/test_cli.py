"""`python -m cascade lora`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from cascade.adapters import read_lora
from cascade.checkpoints import load_model, save_model
from cascade.cli import lora, main
from cascade.conditioning import tokenizer
from tests.adapters import loras
from tests.small import text_encoder
from tests.support import golden, relative_error


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, where the test runs, with a Stage C and the golden LoRA."""
    monkeypatch.chdir(tmp_path)
    save_model(loras.small_stage_c(), "base.safetensors")
    save_file({k: v.contiguous() for k, v in loras.official().items()}, "lora.safetensors")
    return tmp_path


def test_the_formats_are_those_of_the_library() -> None:
    from cascade.adapters import WRITABLE

    assert set(lora.FORMATS) == set(WRITABLE)


def test_info(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--base", "base.safetensors", "--token", "[rex]=^dog</w>"]
    assert main(["lora", "info", "lora.safetensors", "--json", *named]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["format"] == "released"
    assert (found["base"], found["ranks"], found["alphas"]) == ("custom", [4], [1.0])
    assert found["tokens"] == [{"text": "[rex]", "initializer": "^dog</w>"}]
    assert found["changes"] == {"stage_c": 40, "text_encoder": 1}
    assert main(["lora", "info", "lora.safetensors", *named]) == 0
    assert "ranks    [4]" in capsys.readouterr().out
    assert main(["lora", "info", "lora.safetensors", "missing.safetensors"]) == 1
    error = capsys.readouterr().err
    assert "a size that was not released" in error
    assert "missing.safetensors: there is no such file" in error


def test_convert_merge_and_extract(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--base", "base.safetensors"]
    ours = ["--format", "cascade", "--token", "[rex]=dog"]
    assert main(["lora", "convert", "lora.safetensors", "ours.safetensors", *base, *ours]) == 0
    assert main(["lora", "convert", "ours.safetensors", "kohya.safetensors", "--format", "kohya"]) == 1
    assert "make it absolute" in capsys.readouterr().err
    assert main(["lora", "merge", "base.safetensors", "ours.safetensors", "merged.safetensors"]) == 0
    merged = load_model("merged.safetensors")
    assert relative_error(loras.golden_output(merged), golden("lora_official")["out_lora"]) < 1e-4
    both = ["base.safetensors", "ours.safetensors", "ours.safetensors", "halves.safetensors"]
    assert main(["lora", "merge", *both, "--strength", "0.25", "--strength", "0.75"]) == 0
    halves = load_model("halves.safetensors")
    assert relative_error(loras.golden_output(halves), golden("lora_official")["out_lora"]) < 1e-4
    both = ["base.safetensors", "merged.safetensors", "found.safetensors"]
    assert main(["lora", "extract", *both, "--rank", "4", "--format", "onetrainer"]) == 0
    assert read_lora("found.safetensors").ranks == (4,)


def test_tokens_are_made_whole_with_a_text_encoder(files: Path) -> None:
    net = text_encoder()
    save_model(net, "text.safetensors")
    delta = net.get_parameter("text_model.embeddings.token_embedding.weight").data[:1].clone()
    save_file({"clip_g": delta}, "token.safetensors")
    there = ["lora", "convert", "token.safetensors", "there.safetensors", "--token", "[rex]=dog"]
    assert main([*there, "--text-encoder", "text.safetensors", "--format", "onetrainer"]) == 0
    [token] = read_lora("there.safetensors").tokens
    [dog] = tokenizer().encode("dog").ids
    table = net.get_parameter("text_model.embeddings.token_embedding.weight").data
    assert (token.text, token.initializer) == ("[rex]", None)
    assert relative_error(token.vectors[0], table[0] + table[dog]) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["merge", "base.safetensors", "lora.safetensors", "base.safetensors"], "source and target are the same"),
        (["merge", "base.safetensors", "lora.safetensors", "a", "--strength", "1", "--strength", "1"], "for 1 LoRAs"),
        (["merge", "lora.safetensors", "lora.safetensors", "a"], "this is a LoRA"),
        (["extract", "base.safetensors", "base.safetensors", "a"], "equal"),
        (["extract", "base.safetensors", "base.safetensors", "a", "--rank", "0"], "at least 1"),
        (["convert", "base.safetensors", "a"], "this is a network, not a LoRA"),
    ],
)
def test_errors_are_one_line(arguments: list[str], text: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", *arguments]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
