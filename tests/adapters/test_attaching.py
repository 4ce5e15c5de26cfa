"""Attach, detach, merge and extract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cascade.adapters import Applied, attach, extract, merge, read_lora
from cascade.adapters.changes import Full, LowRank, Rows
from cascade.adapters.lora import TABLE, Lora, Token
from cascade.conditioning import TextEncoder, tokenizer
from cascade.errors import IncompatibleCheckpoint
from tests.adapters import loras
from tests.small import TEXT, text_encoder
from tests.support import relative_error

pytestmark = pytest.mark.numeric

QUERY = "down_blocks.0.2.attention.attn.to_q.weight"
FC1 = "text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(text_encoder().requires_grad_(False), tokenizer())


@pytest.fixture
def net() -> nn.Module:
    return loras.small_stage_c()


def copy_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(net: nn.Module, state: dict[str, Tensor]) -> bool:
    now = net.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[name], state[name]) for name in state)


def some_lora(rank: int = 2, tokens: tuple[Token, ...] = ()) -> Lora:
    stage_c = {
        QUERY: LowRank(torch.randn(rank, 32), torch.randn(32, rank), 1.0),
        "down_blocks.0.0.depthwise.weight": LowRank(torch.randn(rank, 32, 3, 3), torch.randn(1, rank, 1, 1), 0.5),
        "down_blocks.0.1.mapper.weight": LowRank(torch.randn(rank, 64), torch.randn(64, rank), 1.0, torch.rand(1, 64)),
        "clf.1.bias": Full(torch.randn(16)),
    }
    return Lora(
        {"stage_c": stage_c, "text_encoder": {FC1: LowRank(torch.randn(1, TEXT), torch.randn(32, 1), 1.0)}}, tokens
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_detaching_restores_every_weight(net: nn.Module, text: TextEncoder, dtype: torch.dtype) -> None:
    net.to(dtype)
    states = copy_of(net), copy_of(text.model)
    token = Token("[thing]", torch.randn(2, TEXT))
    attachment = attach(
        [Applied(some_lora(tokens=(token,)), 0.7, 1.3), Applied(some_lora(), -1.0, 0.5)],
        stage_c=net,
        text_encoder=text.model,
        tokenizer=text.tokenizer,
    )
    assert attachment.changed == {"stage_c": 4, "text_encoder": 1}
    assert not same(net, states[0])
    assert not same(text.model, states[1])
    attachment.detach()
    attachment.detach()
    assert same(net, states[0])
    assert same(text.model, states[1])


def test_strength_0_is_no_lora_bit_for_bit(net: nn.Module, text: TextEncoder) -> None:
    before, prompt = loras.golden_output(net), text.encode(["a [thing]"])
    lora = some_lora(tokens=(Token("[thing]", torch.randn(1, TEXT)),))
    with attach(
        [Applied(lora, 0.0, 0.0)], stage_c=net, text_encoder=text.model, tokenizer=text.tokenizer
    ) as attachment:
        assert torch.equal(loras.golden_output(net), before)
        after = TextEncoder(text.model, attachment.tokenizer).encode(["a [thing]"])
        assert torch.equal(after.hidden, prompt.hidden)
        assert torch.equal(after.pooled, prompt.pooled)


def test_each_network_has_its_own_strength(net: nn.Module, text: TextEncoder) -> None:
    states = copy_of(net), copy_of(text.model)
    with attach([Applied(some_lora(), 0.0, 1.0)], stage_c=net, text_encoder=text.model):
        assert same(net, states[0])
        assert not same(text.model, states[1])
    with attach([Applied(some_lora(), 1.0, 0.0)], stage_c=net, text_encoder=text.model):
        assert not same(net, states[0])
        assert same(text.model, states[1])


def test_several_add_up_in_any_order(net: nn.Module) -> None:
    many = [Applied(some_lora(), strength) for strength in (0.5, -0.25, 1.0)]
    with attach(many, stage_c=net):
        one = loras.golden_output(net)
    with attach(many[::-1], stage_c=net):
        assert relative_error(loras.golden_output(net), one) < 1e-4


def test_500_loras_in_a_stack(net: nn.Module) -> None:
    lora = Lora({"stage_c": {QUERY: LowRank(torch.randn(1, 32), torch.randn(32, 1), 1.0)}})
    state, query = copy_of(net), net.get_parameter(QUERY).clone()
    delta = lora.changes["stage_c"][QUERY].delta(query)
    with attach([Applied(lora, 0.01)] * 500, stage_c=net):
        assert relative_error(net.get_parameter(QUERY), query + 5 * delta) < 1e-5
    assert same(net, state)


def test_merged_equals_attached(net: nn.Module) -> None:
    official = [Applied(read_lora(loras.official(), config=loras.SMALL), 0.8), Applied(some_lora(), 0.5)]
    with attach(official, stage_c=net):
        attached = loras.golden_output(net)
    assert merge(official, net) == 43
    assert relative_error(loras.golden_output(net), attached) < 1e-4


def test_dora_gives_rows_or_columns_their_length() -> None:
    weight = torch.randn(6, 4)
    low = LowRank(torch.randn(2, 4), torch.randn(6, 2), 2.0)
    for lengths, axis in ((torch.rand(6, 1) + 1, 1), (torch.rand(1, 4) + 1, 0)):
        changed = weight + LowRank(low.down, low.up, low.alpha, lengths).delta(weight)
        assert relative_error(changed.norm(dim=axis, keepdim=True), lengths) < 1e-5
        direction = torch.nn.functional.normalize(weight + low.delta(weight), dim=axis)
        assert relative_error(changed, direction * lengths) < 1e-5
    conv = torch.randn(6, 4, 3, 3)
    lengths = torch.rand(1, 4, 1, 1) + 1
    change = LowRank(torch.randn(2, 4, 3, 3), torch.randn(6, 2, 1, 1), 2.0, lengths)
    found = torch.linalg.vector_norm(conv + change.delta(conv), dim=(0, 2, 3), keepdim=True)
    assert relative_error(found, lengths) < 1e-5


def test_rows_of_the_token_table_change(text: TextEncoder) -> None:
    lora = Lora({"text_encoder": {TABLE: Rows(torch.tensor([320]), torch.ones(1, TEXT))}})
    table = text.model.get_parameter(TABLE).clone()
    with attach([Applied(lora, 1.0, 2.0)], text_encoder=text.model):
        changed = text.model.get_parameter(TABLE)
        assert torch.equal(changed[320], table[320] + 2)
        assert torch.equal(changed[:320], table[:320])
        assert torch.equal(changed[321:], table[321:])


def test_nothing_changes_when_one_of_several_does_not_fit(net: nn.Module) -> None:
    state = copy_of(net)
    wrong = Lora({"stage_c": {QUERY: LowRank(torch.randn(1, 48), torch.randn(48, 1), 1.0)}})
    with pytest.raises(IncompatibleCheckpoint, match=r"made for a Stage C 48 wide \(custom\), and this one is 32 wide"):
        attach([Applied(some_lora()), Applied(wrong)], stage_c=net)
    assert same(net, state)
    attach([Applied(some_lora())], stage_c=net).detach()


def test_a_second_attachment_is_refused(net: nn.Module) -> None:
    with attach([Applied(some_lora())], stage_c=net), pytest.raises(ValueError, match="detach them"):
        attach([Applied(some_lora())], stage_c=net)


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_a_number(net: nn.Module, strength: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        attach([Applied(some_lora(), strength)], stage_c=net)


def test_merging_what_changes_nothing_is_refused(net: nn.Module) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="none of the LoRAs changes Stage C"):
        merge([Applied(Lora({}, (Token("[a]", torch.zeros(1, 4)),)))], net)


def test_extracting_finds_what_was_merged(net: nn.Module) -> None:
    tuned = loras.small_stage_c()
    merge([Applied(read_lora(loras.official(), config=loras.SMALL))], tuned)
    lora = extract(net, tuned, 4)
    assert set(lora.changes["stage_c"]) == set(read_lora(loras.official(), config=loras.SMALL).changes["stage_c"])
    assert lora.ranks == (4,)
    with attach([Applied(lora)], stage_c=net):
        assert relative_error(loras.golden_output(net), loras.golden_output(tuned)) < 1e-4


def test_extracting_convolutions_and_vectors(net: nn.Module) -> None:
    tuned = loras.small_stage_c()
    merge([Applied(some_lora())], tuned)
    lora = extract(net, tuned, 32, only=("clf", "depthwise", "channelwise"))
    assert set(lora.changes["stage_c"]) == {"clf.1.bias", "down_blocks.0.0.depthwise.weight"}
    merge([Applied(lora)], net)
    for name in lora.changes["stage_c"]:
        assert relative_error(net.get_parameter(name), tuned.get_parameter(name)) < 1e-5


def test_a_large_matrix_is_decomposed_as_well_as_the_exact_way() -> None:
    from cascade.adapters.extracting import decompose

    torch.manual_seed(1)
    matrix = torch.randn(256, 4) @ torch.randn(4, 512) + 0.01 * torch.randn(256, 512)
    down, up = decompose(matrix, 4)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    best = (matrix - (u[:, :4] * s[:4]) @ vh[:4]).norm()
    assert (matrix - up @ down).norm() < 1.01 * best


def test_extracting_needs_two_networks_that_differ(net: nn.Module, text: TextEncoder) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="equal"):
        extract(net, loras.small_stage_c(), 4)
    with pytest.raises(IncompatibleCheckpoint, match="same kind and size"):
        extract(net, text.model, 4)
    with pytest.raises(ValueError, match="at least 1"):
        extract(net, net, 0)
