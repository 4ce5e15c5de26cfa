"""Images with LoRAs: on the networks while they are used, and not after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cascade.adapters import Applied, Lora, LowRank, Token, attach, save_lora
from cascade.cli import main
from cascade.conditioning import TextEncoder, tokenizer
from cascade.pipelines import Parts, Settings, generate
from tests import small
from tests.support import relative_error

pytestmark = pytest.mark.numeric

QUERY = "down_blocks.0.2.attention.attn.to_q.weight"
SETTINGS = Settings(width=64, height=64)


def some_lora() -> Lora:
    torch.manual_seed(0)
    width = small.CONFIGS["stage_c"].levels[0].width
    change = LowRank(torch.randn(2, width), torch.randn(width, 2), 4.0)
    return Lora({"stage_c": {QUERY: change}}, (Token("[thing]", torch.randn(1, small.TEXT) * 10),))


def drawn(prompt: str, *applied: Applied) -> torch.Tensor:
    return generate(Parts(small.small_cascade(), loras=applied), [prompt], seeds=[1], settings=SETTINGS).images


def test_a_lora_acts_and_leaves_no_trace() -> None:
    lora, plain = some_lora(), drawn("a red [thing]")
    assert relative_error(drawn("a red [thing]", Applied(lora)), plain) > 1e-3
    assert relative_error(drawn("a red [thing]", Applied(lora, 0.0, 1.0)), plain) > 1e-3
    assert torch.equal(drawn("a red [thing]", Applied(lora, 0.0, 0.0)), plain)
    assert torch.equal(drawn("a red circle", Applied(lora, 0.0, 1.0)), drawn("a red circle"))
    assert torch.equal(drawn("a red [thing]"), plain)


def test_the_text_encoder_knows_the_words_that_are_attached() -> None:
    net = small.part("text_encoder")
    before = TextEncoder(net).chunks("a [thing]")
    with attach([Applied(some_lora())], text_encoder=net, tokenizer=tokenizer()):
        assert TextEncoder(net).chunks("a [thing]")[0][1:] == [49408]
    assert TextEncoder(net).chunks("a [thing]") == before


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_lora(some_lora(), tmp_path / "a.safetensors")
    assert main(["generate", "a", "-o", str(tmp_path / "a.png"), "--lora", f"{tmp_path / 'a.safetensors'}=much"]) == 1
    assert "'much' is not a strength" in capsys.readouterr().err
    assert main(["generate", "a", "-o", str(tmp_path / "a.png"), "--lora", str(tmp_path / "a.safetensors")]) == 1
    assert "the token [thing] is 16 wide, the text encoder 48" in capsys.readouterr().err
