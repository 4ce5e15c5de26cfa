from __future__ import annotations

import pytest
import torch

from cascade.conditioning import TextEncoder
from cascade.errors import InvalidSettings
from tests.support import relative_error

pytestmark = pytest.mark.numeric

LONG = "a very long prompt about many small things, " * 12


@pytest.fixture(scope="module")
def encoder(text_model):
    return TextEncoder(text_model)


def by_hand(model, ids, mask):
    """The text tower of Radford et al. written out: pre-norm layers, causal and padding mask, no final norm."""
    tower = model.text_model
    x = tower.embeddings.token_embedding(ids) + tower.embeddings.position_embedding.weight
    allowed = torch.ones(77, 77).tril().bool() & mask[:, None, None, :].bool()
    for layer in tower.encoder.layers:
        y = layer.layer_norm1(x)
        attention = layer.self_attn
        q, k, v = (
            proj(y).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + attention.out_proj(y.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layer_norm2(x))
    end = (ids == 49407).int().argmax(1)
    normed = tower.final_layer_norm(x)[torch.arange(len(ids)), end]
    return x, model.text_projection(normed)


@torch.no_grad()
def test_hidden_is_before_the_final_norm_and_pooled_is_at_the_end_token(encoder):
    prompts = ["a photo of a cat", "", "red"]
    ids, mask = encoder.tokenize(prompts)
    embedding = encoder.encode(prompts)
    hidden, pooled = by_hand(encoder.model, ids[:, 0], mask[:, 0])
    assert relative_error(embedding.hidden, hidden) < 1e-5
    assert relative_error(embedding.pooled[:, 0], pooled) < 1e-5
    assert embedding.hidden.shape == (3, 77, 16)
    assert embedding.pooled.shape == (3, 1, 12)


def test_ids_are_padded_with_the_end_token_which_the_mask_hides(encoder):
    ids, mask = encoder.tokenize(["a photo of a cat", ""])
    assert ids[0, 0].tolist() == [49406, 320, 1125, 539, 320, 2368] + [49407] * 71
    assert ids[1, 0].tolist() == [49406] + [49407] * 76
    assert mask.sum(-1).tolist() == [[7], [2]]


def test_75_tokens_fit_one_chunk_and_76_do_not(encoder):
    ids, mask = encoder.tokenize(["cat " * 75])
    assert ids.shape == (1, 1, 77)
    assert mask.all()
    ids, mask = encoder.tokenize(["cat " * 76])
    assert ids.shape == (1, 2, 77)
    assert ids[0, 1, :3].tolist() == [49406, 2368, 49407]
    assert mask[0, 1].sum() == 3


@torch.no_grad()
def test_long_prompts_are_chunks_one_after_another(encoder):
    chunks = encoder.chunks(LONG)
    embedding = encoder.encode([LONG])
    ids, mask = encoder.tokenize([LONG])
    parts = [encoder.embed(ids[:, i : i + 1], mask[:, i : i + 1]) for i in range(len(chunks))]
    assert [len(chunk) for chunk in chunks] == [75, len(encoder.tokenizer.encode(LONG).ids) - 75]
    assert relative_error(embedding.hidden, torch.cat([part.hidden for part in parts], 1)) < 1e-5
    assert relative_error(embedding.pooled, parts[0].pooled) < 1e-5


@torch.no_grad()
def test_a_short_prompt_beside_a_long_one_gets_empty_chunks(encoder):
    both = encoder.encode(["cat", LONG])
    cat, empty, long = encoder.encode(["cat"]), encoder.encode([""]), encoder.encode([LONG])
    chunks = len(encoder.chunks(LONG))
    expected = torch.cat([cat.hidden, *[empty.hidden] * (chunks - 1)], 1)
    assert relative_error(both.hidden, torch.cat([expected, long.hidden])) < 1e-5
    assert relative_error(both.pooled, torch.cat([cat.pooled, long.pooled])) < 1e-5


def test_gradients_reach_the_token_table(encoder):
    encoder.encode(["cat"]).hidden.sum().backward()
    gradient = encoder.model.text_model.embeddings.token_embedding.weight.grad
    assert gradient[2368].abs().sum() > 0
    assert gradient[320].abs().sum() == 0


def test_half_of_a_character_is_refused_with_its_place(encoder):
    with pytest.raises(InvalidSettings, match=r"'\\ud83d'.* at place 5"):
        encoder.encode(["a red circle", "red \ud83d"])
    assert encoder.encode(["red 🎨"]).pooled.isfinite().all()
