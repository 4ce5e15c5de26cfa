"""The shipped vocabulary is CLIP's, and our tokenizer splits as transformers' CLIPTokenizer does."""

from __future__ import annotations

import pytest

from cascade.conditioning import vocabulary

TRICKY = [
    "",
    "   ",
    "A Photo  of\ta\nCAT",
    "It's 2024's  Éclair über alles, don't!!",
    "日本語 😀🎉🎉",
    "\x00\u200b naïve cafe\u0301 ﬁ ½ ١٢",
    "l'eau 3.14e-5 c++ <|endoftext|> x <|startoftext|>",
    "a" * 300,
]


@pytest.fixture(scope="module")
def ours():
    return vocabulary.tokenizer()


def test_known_ids(ours):
    assert ours.get_vocab_size() == 49408
    assert ours.encode("a photo of a cat").ids == [320, 1125, 539, 320, 2368]
    assert ours.encode("").ids == []
    assert ours.token_to_id(vocabulary.START) == vocabulary.START_ID
    assert ours.token_to_id(vocabulary.END) == vocabulary.END_ID


def test_nothing_is_lost_between_bytes_and_characters():
    characters = vocabulary.byte_characters()
    assert len(set(characters)) == 256
    assert not any(character.isspace() for character in characters)


def test_same_ids_as_transformers(ours):
    CLIPTokenizer = pytest.importorskip("transformers", minversion="5").CLIPTokenizer
    theirs = CLIPTokenizer(vocab=ours.get_vocab(), merges=vocabulary.read_merges())
    for text in TRICKY:
        assert ours.encode(text).ids == theirs(text).input_ids[1:-1], text


def test_the_licence_ships_with_the_vocabulary():
    notice = vocabulary.MERGES.with_name("clip_merges.LICENSE.txt").read_text(encoding="utf-8")
    assert "MIT License" in notice
    assert "OpenAI" in notice
