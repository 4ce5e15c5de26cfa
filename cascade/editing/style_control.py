"""Style control of a run by what a descriptor sees in its predictions (Rout et al. 2024, RB-Modulation, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidSettings

Describe = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Stage C's latents [B, 16, h, w] -> descriptors of their style and of their content, [B, c] each; gradients flow."""


@dataclass(frozen=True, kw_only=True)
class ControlSteps:
    """How strongly the prediction of each step follows the references; the published settings by default.

    steps: of Adam, on the predicted x0. learning_rate: falls linearly over the run. style, content: weights of the
    distances to the references. pull: weight of the distance to the x0 that was predicted. until: the part of the run
    that is controlled.

    Raises InvalidSettings for a number below 0.
    """

    steps: int = 3
    learning_rate: float = 0.1
    style: float = 1.0
    content: float = 1.0
    pull: float = 1.0
    until: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise InvalidSettings(f"the control's {name} must be at least 0, got {value}")


@dataclass(frozen=True)
class StyleControl:
    """Steers a run (`diffusion.Steering`): its predictions come closer to the references.

    style, content: descriptors [1 or B, c] of the references; None for no content.
    """

    describe: Describe
    style: Tensor
    content: Tensor | None = None
    settings: ControlSteps = ControlSteps()

    def __call__(self, i: int, n: int, x0: Tensor) -> Tensor:
        settings = self.settings
        if i >= settings.until * n or not settings.steps:
            return x0
        with torch.enable_grad():
            found = x0.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([found], lr=settings.learning_rate * (1 - i / n))
            for _ in range(settings.steps):
                optimizer.zero_grad()
                self._distance(found, x0.detach()).backward(inputs=[found])
                optimizer.step()
        return found.detach()

    def _distance(self, x0: Tensor, predicted: Tensor) -> Tensor:
        style, content = self.describe(x0)
        distance = self.settings.style * _cosine_distance(style, self.style)
        if self.content is not None:
            distance = distance + self.settings.content * _cosine_distance(content, self.content)
        return distance + self.settings.pull * F.mse_loss(x0, predicted)


def _cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(a.float(), b.float().expand_as(a), dim=1)).abs().mean()
