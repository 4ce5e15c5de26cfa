"""Style and content of reference images in a run, without training (Rout et al. 2024, RB-Modulation)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..conditioning import ImageEncoder
from ..diffusion import InInterval
from ..editing import ControlSteps, References, StyleControl
from ..images import as_rgb, fit
from .networks import Parts
from .stages import encode_stage_c

if TYPE_CHECKING:
    from .generate import Generated, Run


@dataclass(frozen=True, kw_only=True)
class StyleReference(InInterval):
    """An image whose look a run's images get, and one whose content they get.

    image, content: [1, 3, H, W] in [0, 1].
    weight: how much of both the attention takes over, 0 to 1; 0 is the plain run, bit for bit.
    control: how the predictions of each step follow what the image encoder sees in the references; None: not at all.
        It takes a pass forward and back through previewer and image encoder in every step of its own.
    """

    image: Tensor
    content: Tensor | None = None
    weight: float = 1.0
    control: ControlSteps | None = None

    def __call__(self, parts: Parts, run: Run) -> Generated:
        """The run with the references. Raises what it raises, MissingPart, and InvalidSettings for a weight."""
        images = [as_rgb(image) for image in (self.image, self.content) if image is not None]
        style, *content = parts.use("image_encoder", lambda net: [ImageEncoder(net).encode(x).cpu() for x in images])
        interval = {"start_percent": self.start_percent, "end_percent": self.end_percent}
        references = References(style=style, content=content[0] if content else None, weight=self.weight, **interval)
        run = replace(run, attention=references)
        if self.control is None:
            return run(parts)
        return run.from_stage_c(parts, self._controlled(parts, run, images, self.control))

    def _controlled(self, parts: Parts, run: Run, images: list[Tensor], control: ControlSteps) -> Tensor:
        """Stage C's latents; previewer and image encoder stay in memory beside Stage C."""
        sizes = run.settings.sizes.stage_c[-2:]
        fitted = torch.cat([fit(image, *run.settings.final) for image in images])
        latents = parts.use("effnet", lambda net: encode_stage_c(net, fitted, sizes))

        def steered(previewer: nn.Module, encoder: nn.Module) -> Tensor:
            describe = described_by(previewer, encoder)
            seen, _ = describe(latents)
            steering = StyleControl(describe, seen[:1], seen[1:] if len(seen) > 1 else None, control)
            return parts.use("stage_c", replace(run, steering=steering).stage_c)

        return parts.use("previewer", lambda net: parts.use("image_encoder", lambda encoder: steered(net, encoder)))


def described_by(previewer: nn.Module, encoder: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """What the image encoder sees in the previewed image of latents; it does not tell style from content."""
    parameter = next(previewer.parameters())

    def describe(latents: Tensor) -> tuple[Tensor, Tensor]:
        image: Any = previewer(latents.to(parameter))
        seen = ImageEncoder(encoder).encode(image)[:, 0]
        return seen, seen

    return describe
