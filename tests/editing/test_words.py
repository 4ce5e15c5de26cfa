"""Which tokens of two prompts belong together, and where words are."""

from __future__ import annotations

import pytest
import torch

from cascade.conditioning import TextEncoder
from cascade.editing import PromptTokens, align
from cascade.errors import InvalidSettings
from tests import small


def tokens(prompt: str) -> PromptTokens:
    return PromptTokens.of(TextEncoder(small.part("text_encoder")), prompt)


def test_a_word_is_found_wherever_it_is() -> None:
    prompt = tokens("a red circle and a red square")
    assert prompt.find(tokens("red")) == [2, 6]
    assert prompt.find(tokens("red square")) == [6, 7]
    assert prompt.find(tokens("Circle")) == [3]


def test_tokens_of_the_second_chunk_come_after_its_start_token() -> None:
    assert tokens(" ".join(["red"] * 75) + " owl").find(tokens("owl")) == [78]


@pytest.mark.parametrize("word", ["blue", "", "circle red"])
def test_a_word_that_is_not_there_is_refused(word: str) -> None:
    with pytest.raises(InvalidSettings, match="is not in the prompt"):
        tokens("a red circle").find(tokens(word))


def test_exchanged_words_share_the_attention_of_those_before() -> None:
    # red: one token; the three that take its place get a third each.
    found = align(tokens("a red circle"), tokens("a very light green circle"), 77)
    assert found.removed == (2,)
    assert found.added == (2, 3, 4)
    assert torch.allclose(found.mapping[[2, 3, 4], 2], torch.full((3,), 1 / 3))
    assert found.mapping[1, 1] == 1
    assert found.mapping[5, 3] == 1
    assert not found.new.any()


def test_added_words_are_new_and_all_others_keep_their_own() -> None:
    found = align(tokens("a circle"), tokens("a red circle"), 77)
    assert found.new.nonzero().flatten().tolist() == [2]
    assert (found.removed, found.added) == ((), (2,))
    assert found.mapping[3, 2] == 1
    # The end token of one is at the padding of the other.
    assert found.mapping[4, 4] == 1
    assert found.mapping[76, 76] == 1


def test_words_left_out() -> None:
    found = align(tokens("a red circle"), tokens("a circle"), 77)
    assert (found.removed, found.added) == ((2,), ())
    assert found.mapping[2, 3] == 1
    # What was a word is padding now: it looks as the end of the prompt did.
    assert found.mapping[3].nonzero().flatten().tolist() == [4]


def test_equal_prompts_change_nothing() -> None:
    found = align(tokens("a red circle"), tokens("a red circle"), 77)
    assert torch.equal(found.mapping, torch.eye(77))
    assert (found.removed, found.added) == ((), ())


@pytest.mark.parametrize(("source", "target"), [("red", "blue circle"), ("", "a circle"), ("owl", "")])
def test_prompts_without_a_common_word_are_refused(source: str, target: str) -> None:
    with pytest.raises(InvalidSettings, match="no word in common"):
        align(tokens(source), tokens(target), 77)
