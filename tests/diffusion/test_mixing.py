"""Mixes of latents and embeddings."""

from __future__ import annotations

import pytest
import torch

from cascade.diffusion import blend, lerp, slerp, weighted


def test_both_ways_begin_and_end_where_they_should() -> None:
    first, second = torch.randn(3, 16, 6, 6), 2 * torch.randn(3, 16, 6, 6)
    for way in (lerp, slerp):
        torch.testing.assert_close(way(first, second, 0.0), first)
        torch.testing.assert_close(way(first, second, 1.0), second)
        steps = way(first, second, torch.tensor([0.0, 0.5, 1.0]))
        torch.testing.assert_close(steps[1:2], way(first[1:2], second[1:2], 0.5))


def test_the_sphere_keeps_the_strength_that_a_line_loses() -> None:
    first, second = torch.randn(1, 16, 24, 24), torch.randn(1, 16, 24, 24)
    assert slerp(first, second, 0.5).std() == pytest.approx(1, abs=0.05)
    assert lerp(first, second, 0.5).std() == pytest.approx(0.5**0.5, abs=0.05)
    grown = slerp(first, 3 * second, 0.5)
    assert grown.norm().item() == pytest.approx((first.norm() + 3 * second.norm()).item() / 2, rel=1e-3)


def test_equal_angles_for_equal_shares() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = slerp(first, second, 1 / 3)
    torch.testing.assert_close(third, torch.tensor([[3**0.5 / 2, 0.5]]))


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.0])
def test_where_there_is_no_sphere_it_is_the_line(factor: float) -> None:
    x = torch.randn(2, 4, 3, 3)
    found = slerp(x, factor * x, 0.25)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, lerp(x, factor * x, 0.25), rtol=1e-3, atol=1e-3)


def test_weights_are_taken_as_they_are() -> None:
    a, b, c = (torch.full((1, 2), value) for value in (1.0, 10.0, 100.0))
    assert weighted([a, b, c], [2.0, 1.0, -0.5]).tolist() == [[-38, -38]]
    with pytest.raises(ValueError, match="longer"):
        weighted([a, b], [1.0])


def test_a_blend_is_as_long_as_its_parts() -> None:
    first, second = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(blend([first, second], [1.0, 1.0]), torch.full((1, 2), 3 / 2**0.5))
    torch.testing.assert_close(blend([first, second], [2.0, 2.0]), blend([first, second], [0.5, 0.5]))
    away = blend([first, second], [1.0, -0.5])
    assert away[0, 1] < 0 < away[0, 0]
    torch.testing.assert_close(away.norm(), torch.tensor(3.0))
    assert torch.equal(blend([first, second], [0.0, 0.0]), torch.zeros(1, 2))


def test_half_precision_stays() -> None:
    x = torch.randn(1, 4, 3, 3).bfloat16()
    assert slerp(x, x.flip(0), 0.5).dtype == lerp(x, x, 0.5).dtype == torch.bfloat16
