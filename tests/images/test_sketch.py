"""Line drawings: of edges, of lines, and of nothing."""

from __future__ import annotations

import torch

from cascade.images import sketch


def image(paint: float, ground: float) -> torch.Tensor:
    """A square in the middle."""
    drawn = torch.full((1, 3, 128, 192), ground)
    drawn[..., 40:90, 60:110] = paint
    return drawn


def test_an_edge_is_one_line() -> None:
    lines = sketch(image(0.9, 0.2), size=128)
    assert lines.shape == (1, 1, 128, 192)
    across = lines[0, 0, 64, 45:75]
    drawn = (across > 0.5).nonzero().flatten()
    assert float(across.max()) == 1
    assert (drawn.diff() == 1).all()
    assert abs(float(drawn.float().mean()) + 45 - 59.5) <= 1
    assert float(lines[0, 0, 64, 75:95].max()) < 0.05


def test_faint_edges_are_drawn_as_strong_ones_are() -> None:
    assert torch.allclose(sketch(image(0.5, 0.3), size=128), sketch(image(1.0, 0.0), size=128), atol=0.02)
    only_red = image(0.5, 0.5)
    only_red[:, 0, 40:90, 60:110] = 0.8
    assert float(sketch(only_red, size=128).max()) == 1


def test_a_drawn_line_stays_one_line_light_or_dark() -> None:
    line = torch.zeros(1, 3, 128, 128)
    line[..., 60:63] = 1
    for drawing in (line, 1 - line):
        across = sketch(drawing, size=128)[0, 0, 64]
        drawn = (across > 0.5).nonzero().flatten()
        assert (drawn.diff() == 1).all()
        assert 60 <= float(drawn.float().mean()) <= 62


def test_nothing_is_drawn_where_there_is_nothing() -> None:
    noise = 0.5 + 0.002 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert float(sketch(noise).max()) < 0.3
    assert float(sketch(torch.full((1, 3, 64, 64), 0.7)).max()) == 0
