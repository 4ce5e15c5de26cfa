"""LoHa, LoKr and OFT: what they add, written here element by element, and every way to read, apply and write them."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cascade.adapters import OFT, Applied, LoHa, LoKr, Lora, attach, extract, merge, norm_of, read_lora, save_lora
from cascade.adapters.changes import Change
from cascade.errors import BrokenCheckpoint, IncompatibleCheckpoint
from tests.adapters import loras
from tests.support import relative_error

pytestmark = pytest.mark.numeric

QUERY = "down_blocks.0.2.attention.attn.to_q.weight"
DEPTHWISE = "down_blocks.0.0.depthwise.weight"
CONV = "clf.1.weight"
SHAPES = {QUERY: (32, 32), DEPTHWISE: (32, 1, 3, 3), CONV: (16, 32, 1, 1)}
STEM = "lora_unet_down_blocks_0_2_attention_attn_to_q"
FORMATS = ("comfyui", "cascade", "kohya", "onetrainer")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def change(kind: str, shape: tuple[int, ...], rank: int = 2, dora: int | None = None) -> Change:
    out, inner = shape[0], math.prod(shape[1:])
    ones = (1,) * (len(shape) - 2)
    lengths = None if dora is None else normal(*((out, 1) if dora == 0 else (1, shape[1])), *ones).abs() + 0.5
    if kind == "loha":
        factors = (normal(out, rank), normal(rank, inner), normal(out, rank, seed=1), normal(rank, inner, seed=1))
        return LoHa(*factors, 0.7, lengths)
    if kind == "oft":
        return OFT(normal(out // 4, 4, 4), normal(out, 1, *ones) + 1)
    left, m = 4, 1 if shape[1] == 1 else 2
    w1 = normal(left, m) if kind == "lokr" else (normal(left, rank), normal(rank, m))
    w2 = (
        normal(out // left, inner // m)
        if kind == "lokr_full"
        else (normal(out // left, rank), normal(rank, inner // m))
    )
    return LoKr(normal(left, m) if kind == "lokr_full" else w1, w2, 0.7, lengths)


KINDS = ("loha", "lokr", "lokr_both", "lokr_full", "oft")


def slow_delta(change: Change, weight: Tensor) -> Tensor:
    """By the definitions, a number at a time."""
    rows, delta = weight.flatten(1), torch.zeros(len(weight), weight[0].numel())
    if isinstance(change, OFT):
        size = change.blocks.shape[1]
        for block, q in enumerate(change.blocks - change.blocks.transpose(1, 2)):
            rotation = torch.linalg.solve(torch.eye(size) - q, torch.eye(size) + q, left=False)
            for row in range(size):
                place = block * size + row
                new = sum(rotation[n, row] * rows[block * size + n] for n in range(size))
                delta[place] = new * change.rescale[place].flatten() - rows[place]
        return delta.reshape(weight.shape)
    for i, j in product(range(delta.shape[0]), range(delta.shape[1])):
        if isinstance(change, LoHa):
            first, second = change.w1_a[i] @ change.w1_b[:, j], change.w2_a[i] @ change.w2_b[:, j]
            delta[i, j] = first * second * change.alpha / change.rank
        elif isinstance(change, LoKr):
            w1, w2 = (pair[0] @ pair[1] if isinstance(pair, tuple) else pair for pair in (change.w1, change.w2))
            scale = change.alpha / 2 if isinstance(change.w1, tuple) or isinstance(change.w2, tuple) else 1
            delta[i, j] = w1[i // len(w2), j // w2.shape[1]] * w2[i % len(w2), j % w2.shape[1]] * scale
    delta = delta.reshape(weight.shape)
    if change.dora is None:
        return delta
    changed = weight + delta
    axis = [n for n in range(weight.dim()) if change.dora.shape[n] == 1]
    return changed * change.dora / changed.square().sum(axis, keepdim=True).sqrt() - weight


def lora_of(kind: str, dora: int | None = None) -> Lora:
    return Lora({"stage_c": {name: change(kind, shape, dora=dora) for name, shape in SHAPES.items()}})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dora", [None, 0, 1])
def test_what_is_added_is_the_definition(kind: str, name: str, dora: int | None) -> None:
    weight, made = normal(*SHAPES[name], seed=9), change(kind, SHAPES[name], dora=dora)
    assert made.fits(weight.shape)
    assert relative_error(made.delta(weight), slow_delta(made, weight)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_for_another_shape_does_not_fit(kind: str) -> None:
    made = change(kind, (32, 32))
    assert not made.fits(torch.Size((16, 32)))
    assert not made.fits(torch.Size((32,)))
    if kind != "oft":
        assert not made.fits(torch.Size((32, 16)))


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.floats(-1.5, 1.5),
    st.floats(-1.5, 1.5),
    st.sampled_from([None, 0]),
)
def test_merged_equals_attached(one: str, other: str, first: float, second: float, dora: int | None) -> None:
    applied = [Applied(lora_of(one, dora), first), Applied(lora_of(other), second)]
    net = loras.small_stage_c()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with attach(applied, stage_c=net):
        attached = loras.golden_output(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    merge(applied, net)
    assert relative_error(loras.golden_output(net), attached) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dora", [None, 1])
def test_every_format_that_holds_it_gives_it_back(kind: str, form: str, dora: int | None, tmp_path: Path) -> None:
    lora = lora_of(kind, dora)
    save_lora(lora, tmp_path / "some.safetensors", format=form)
    found = read_lora(tmp_path / "some.safetensors")
    assert found.format == form
    assert found.kinds == lora.kinds
    assert found.changes["stage_c"].keys() == SHAPES.keys()
    for name, shape in SHAPES.items():
        weight = normal(*shape, seed=9)
        expected = lora.changes["stage_c"][name].delta(weight)
        assert relative_error(found.changes["stage_c"][name].delta(weight), expected) < 1e-6


@pytest.mark.parametrize(("kind", "title"), [("loha", "LoHa"), ("lokr", "LoKr"), ("oft", "OFT")])
@pytest.mark.parametrize("form", ["peft", "omi", "onetrainer_diffusers"])
def test_a_format_without_a_place_for_it_is_refused(kind: str, title: str, form: str, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=f"has no place for the {title} of"):
        save_lora(lora_of(kind), tmp_path / "some.safetensors", format=form)


def test_a_tucker_core_is_multiplied_in() -> None:
    stem, rank = "lora_unet_clf_1", 3
    core, other, mid = (normal(rank, rank, 1, 1, seed=n) for n in range(3))
    a, b, c, d = normal(rank, 16), normal(rank, 32), normal(rank, 16, seed=1), normal(rank, 32, seed=1)
    weight = normal(16, 32, 1, 1)

    def built(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("ijkl,jr,ip->prkl", core, b, a)

    loha = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "hada_t1": core, "hada_t2": other}
    loha["alpha"] = torch.tensor(1.5)
    found = read_lora({f"{stem}.{name}": tensor for name, tensor in loha.items()}).changes["stage_c"]["clf.1.weight"]
    assert relative_error(found.delta(weight), built(core, a, b) * built(other, c, d) * 0.5) < 1e-5
    lokr = {"lokr_w1": normal(2, 4), "lokr_w2_a": a[:, :8], "lokr_w2_b": b[:, :8], "lokr_t2": core}
    found = read_lora({f"{stem}.{name}": tensor for name, tensor in lokr.items()}).changes["stage_c"]["clf.1.weight"]
    expected = torch.kron(lokr["lokr_w1"][..., None, None], built(core, a[:, :8], b[:, :8]).contiguous())
    assert relative_error(found.delta(weight), expected) < 1e-5
    locon = {"lora_up.weight": a.mT[..., None, None], "lora_down.weight": b[..., None, None], "lora_mid.weight": mid}
    found = read_lora({f"{stem}.{name}": tensor for name, tensor in locon.items()}).changes["stage_c"]["clf.1.weight"]
    assert relative_error(found.delta(weight), built(mid, a, b)) < 1e-5


def test_the_bound_of_oft_makes_its_blocks_smaller() -> None:
    blocks = normal(8, 4, 4)
    norm = (blocks - blocks.mT).norm()
    for alpha, factor in ((0.0, 1.0), (1.0, 1.0), (float(norm) / 64, 0.5)):
        tensors = {f"{STEM}.oft_blocks": blocks, f"{STEM}.alpha": torch.tensor(alpha)}
        found = read_lora(tensors).changes["stage_c"][QUERY]
        assert isinstance(found, OFT)
        assert relative_error(found.blocks, blocks * factor) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_matrix_is_split(kind: str) -> None:
    made = change(kind, (96, 32))
    if isinstance(made, LoKr):
        made = LoKr(normal(6, 2), (normal(16, 2), normal(2, 16)), 0.7)
    parts = {
        "loha": lambda c: {"hada_w1_a": c.w1_a, "hada_w1_b": c.w1_b, "hada_w2_a": c.w2_a, "hada_w2_b": c.w2_b},
        "oft": lambda c: {"oft_blocks": c.blocks, "rescale": c.rescale},
    }.get(kind, lambda c: {"lokr_w1": c.w1, "lokr_w2_a": c.w2[0], "lokr_w2_b": c.w2[1]})(made)
    parts |= {} if kind == "oft" else {"alpha": torch.tensor(made.alpha)}  # type: ignore[union-attr]
    stem = "lora_unet_down_blocks_0_2_attention_attn_in_proj"
    found = read_lora({f"{stem}.{name}": tensor for name, tensor in parts.items()}).changes["stage_c"]
    weight = normal(96, 32, seed=9)
    deltas = [
        found[QUERY.replace("to_q", f"to_{matrix}")].delta(part)
        for matrix, part in zip("qkv", weight.chunk(3), strict=True)
    ]
    assert relative_error(torch.cat(deltas), made.delta(weight)) < 1e-5


BAD = {
    "a missing factor": {"hada_w1_a": normal(32, 2)},
    "ranks that differ": {
        **{"hada_w1_a": normal(32, 2), "hada_w1_b": normal(3, 32)},
        **{"hada_w2_a": normal(32, 2), "hada_w2_b": normal(3, 32)},
    },
    "no second matrix": {"lokr_w1": normal(4, 4)},
    "a matrix twice": {"lokr_w1": normal(4, 4), "lokr_w2": normal(8, 8), "lokr_w2_a": normal(8, 2)},
    "blocks that are no squares": {"oft_blocks": normal(4, 8, 7)},
    "a vector": {"lokr_w1": normal(4), "lokr_w2": normal(8, 8)},
    "nothing in it": {"lokr_w1": torch.zeros(0, 4), "lokr_w2": normal(8, 8)},
    "numbers that are whole": {"lokr_w1": torch.ones(4, 4, dtype=torch.int64), "lokr_w2": normal(8, 8)},
    "a scale of several": {"lokr_w1": normal(4, 4), "lokr_w2": normal(8, 8), "alpha": torch.ones(2)},
    "kinds that are mixed": {"lokr_w1": normal(4, 4), "lokr_w2": normal(8, 8), "lora_up.weight": normal(32, 2)},
}


@pytest.mark.parametrize("case", BAD)
def test_parts_that_make_no_change_are_refused(case: str) -> None:
    with pytest.raises(BrokenCheckpoint, match=STEM):
        read_lora({f"{STEM}.{name}": tensor for name, tensor in BAD[case].items()})


def test_boft_is_named() -> None:
    with pytest.raises(IncompatibleCheckpoint, match="BOFT"):
        read_lora({f"{STEM}.oft_blocks": normal(2, 8, 4, 4)})


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_is_that_of_what_is_added(kind: str) -> None:
    made = change(kind, (32, 32))
    weight = torch.eye(32)
    made = OFT(made.blocks) if isinstance(made, OFT) else made
    assert norm_of(made) == pytest.approx(float(made.delta(weight).norm()), rel=1e-4)


def test_the_difference_of_a_merged_network_becomes_a_lora() -> None:
    base, tuned = loras.small_stage_c(), loras.small_stage_c()
    merge([Applied(lora_of("lokr"))], tuned)
    again = loras.small_stage_c()
    merge([Applied(extract(base, tuned, 32))], again)
    assert relative_error(loras.golden_output(again), loras.golden_output(tuned)) < 1e-4
