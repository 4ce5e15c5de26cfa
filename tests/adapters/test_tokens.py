"""Learned tokens in prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.adapters import Applied, Attachment, LearnedTokenizer, absolute, attach
from cascade.adapters.lora import TABLE, Lora, Token
from cascade.adapters.tokens import initializer_ids
from cascade.conditioning import TextEncoder, tokenizer
from cascade.errors import IncompatibleCheckpoint
from tests.small import TEXT, text_encoder
from tests.support import relative_error

BASE = tokenizer()
VOCABULARY = 49408


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(text_encoder().requires_grad_(False), BASE)


def attached(text: TextEncoder, *loras: Lora) -> Attachment:
    return attach([Applied(lora) for lora in loras], text_encoder=text.model, tokenizer=text.tokenizer)


def with_token(text: str, count: int = 1, initializer: str | None = None) -> Lora:
    torch.manual_seed(sum(map(ord, text)))
    return Lora({}, (Token(text, torch.randn(count, TEXT), initializer),))


def ids(text: str) -> list[int]:
    return BASE.encode(text).ids


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [thing] here", [*ids("a"), 50000, *ids("here")]),
        ("a [THING], here", [*ids("a"), 50000, *ids(", here")]),
        ("[thing][thing]", [50000, 50000]),
        ("[things]", ids("[things]")),
        ("zork and zorks", [50001, 50002, *ids("and zorks")]),
        ("the zork.", [*ids("the"), 50001, 50002, *ids(".")]),
        ("", []),
    ],
)
def test_tokens_are_found(prompt: str, expected: list[int]) -> None:
    learned = LearnedTokenizer(BASE, {"[thing]": [50000], "zork": [50001, 50002]})
    assert learned.encode(prompt).ids == expected


@pytest.mark.parametrize("word", ["[\u03c2]", "[\u03c3]", "[\u00b5]", "[\u017f]", "[\u0130]", "[\u1e9e]", "[K\u212a]"])
def test_letters_of_more_than_two_cases(word: str) -> None:
    """Greek has two small letters s; others have forms that are only compatible."""
    learned = LearnedTokenizer(BASE, {word: [50000]})
    assert learned.encode(f"{word}{word}").ids == [50000, 50000]
    for near in (
        "[\u03a3]",
        "[\u03c2]",
        "[\u03c3]",
        "[\u03bc]",
        "[s]",
        "[i]",
        "[\u00df]",
        "[kk]",
        word.upper(),
        word.lower(),
    ):
        assert learned.encode(near).ids in ([50000], ids(near))


@settings(max_examples=50)
@given(st.text(max_size=40).filter(lambda text: "zork" not in text.lower()))
def test_prompts_without_the_token_are_tokenized_as_before(prompt: str) -> None:
    assert LearnedTokenizer(BASE, {"zork": [50000]}).encode(prompt).ids == ids(prompt)


def test_a_token_of_several_vectors_works_in_prompts_and_leaves_others(text: TextEncoder) -> None:
    plain, table = text.encode(["a red circle"]), text.model.get_parameter(TABLE).data
    lora = with_token("[thing]", 3)
    with attached(text, lora) as attachment:
        assert attachment.tokens == ("[thing]",)
        encoder = TextEncoder(text.model, attachment.tokenizer)
        assert encoder.chunks("a [thing]")[0][1:] == [VOCABULARY, VOCABULARY + 1, VOCABULARY + 2]
        rows = text.model.get_parameter(TABLE).data
        assert torch.equal(rows[:VOCABULARY], table)
        assert torch.equal(rows[VOCABULARY:], lora.tokens[0].vectors)
        again = encoder.encode(["a red circle"])
        assert torch.equal(again.hidden, plain.hidden)
        assert torch.equal(again.pooled, plain.pooled)
        learned = encoder.encode(["a red [thing]"])
    assert relative_error(learned.hidden, plain.hidden) > 1e-3
    assert text.model.get_parameter(TABLE).data.data_ptr() == table.data_ptr()
    assert text.model.get_submodule(TABLE.removesuffix(".weight")).num_embeddings == VOCABULARY


def test_a_token_that_adds_nothing_reads_as_its_initializer(text: TextEncoder) -> None:
    expected = text.encode(["a dog in the snow"])
    lora = Lora({}, (Token("[rex]", torch.zeros(1, TEXT), "^dog</w>"),))
    with attached(text, lora) as attachment:
        found = TextEncoder(text.model, attachment.tokenizer).encode(["a [rex] in the snow"])
    assert relative_error(found.hidden, expected.hidden) < 1e-6
    assert relative_error(found.pooled, expected.pooled) < 1e-6


def test_an_old_config_still_pools_at_the_end_token(text: TextEncoder) -> None:
    expected = text.encode(["a dog"])
    inner = text.model.get_submodule("text_model")
    inner.eos_token_id = 2  # type: ignore[assignment]
    with attached(text, Lora({}, (Token("[rex]", torch.zeros(1, TEXT), "dog"),))) as attachment:
        found = TextEncoder(text.model, attachment.tokenizer).encode(["a [rex]"])
    assert inner.eos_token_id == 2
    inner.eos_token_id = 49407  # type: ignore[assignment]
    assert relative_error(found.pooled, expected.pooled) < 1e-6


def test_initializers_are_texts_or_patterns(text: TextEncoder) -> None:
    assert initializer_ids("dog", BASE) == initializer_ids("^dog</w>", BASE) == ids("dog")
    assert initializer_ids("red dog", BASE) == ids("red dog")
    assert initializer_ids("^dog</w>|^cat</w>", BASE) == sorted([*ids("dog"), *ids("cat")])
    table = text.model.get_parameter(TABLE).data
    lora = with_token("[thing]", 1, "red dog")
    whole = absolute(lora, table, BASE).tokens[0]
    assert whole.initializer is None
    assert relative_error(whole.vectors, lora.tokens[0].vectors + table[ids("red dog")].mean(0)) < 1e-6


@pytest.mark.parametrize("initializer", ["^(a+)+$", "^a*b*c*", "^" + "a" * 200, "^[", "^qqqqqqqqqqqq</w>", ""])
def test_an_initializer_that_matches_nothing_is_refused(text: TextEncoder, initializer: str) -> None:
    with pytest.raises(IncompatibleCheckpoint):
        attached(text, with_token("[thing]", 1, initializer))


@pytest.mark.parametrize("word", ["dog", "Dog", "red"])
def test_an_ordinary_word_is_refused_until_it_is_renamed(text: TextEncoder, word: str) -> None:
    lora = with_token(word)
    with pytest.raises(IncompatibleCheckpoint, match="ordinary word"):
        attached(text, lora)
    attached(text, lora.renamed({word: f"[{word}]"})).detach()


@pytest.mark.parametrize("name", ["two words", "(word)", "a:1.2", "a,b", "x" * 101, "new\nline"])
def test_a_text_that_prompts_cannot_hold_is_refused(text: TextEncoder, name: str) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="cannot be a token"):
        attached(text, with_token(name))


def test_two_loras_with_one_token(text: TextEncoder) -> None:
    one, same, other = with_token("[thing]"), with_token("[thing]"), with_token("[THING]")
    attached(text, one, same).detach()
    with pytest.raises(IncompatibleCheckpoint, match="both define the token"):
        attached(text, replace(one, path="a.safetensors"), replace(other, path="b.safetensors"))
    with attached(text, one, other.renamed({"[THING]": "[other]"})) as attachment:
        assert attachment.tokens == ("[thing]", "[other]")


def test_a_token_without_a_name_or_of_another_width_is_refused(text: TextEncoder) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="without a name"):
        attached(text, with_token(""))
    with pytest.raises(IncompatibleCheckpoint, match=f"1280 wide, the text encoder {TEXT}"):
        attached(text, Lora({}, (Token("[thing]", torch.zeros(1, 1280)),)))
    with pytest.raises(ValueError, match="tokenizer"):
        attach([Applied(with_token("[thing]"))], text_encoder=text.model)


def test_an_initializer_of_megabytes_is_refused() -> None:
    """The vectors of all its tokens would take gigabytes."""
    for initializer in ("a b " * 250_000, "^a|" * 250_000):
        with pytest.raises(IncompatibleCheckpoint, match="more than 1000 characters"):
            initializer_ids(initializer, BASE)


@pytest.mark.parametrize("initializer", ["\ud800", "[\ud800-a]|x"])
def test_an_initializer_with_half_a_character_is_refused(initializer: str) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="has half a character"):
        initializer_ids(initializer, BASE)
