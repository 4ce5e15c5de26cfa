"""Style and content of reference images in a run, without training (Rout et al. 2024, RB-Modulation)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checkpoints import StyleDescriptor
from ..conditioning import ImageEncoder
from ..conditioning.image import preprocess
from ..diffusion import InInterval
from ..editing import ControlSteps, References, StyleControl
from ..errors import InvalidSettings
from ..images import as_rgb, fit, resize_mask
from .networks import Parts
from .stages import encode_stage_c

if TYPE_CHECKING:
    from .generate import Generated, Run

DESCRIPTOR = "style_descriptor"

Look = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B, 3, H, W] in [0, 1] -> what is seen of their style and of their content, [B, c] each; gradients flow."""


@dataclass(frozen=True, kw_only=True)
class StyleReference(InInterval):
    """An image whose look a run's images get, one whose content they get, or both.

    image, content: [1, 3, H, W] in [0, 1]; the first is the style's.
    content_mask: [1, 1, H, W] in [0, 1], of any size: 1 where the content counts. The rest of it is seen as black.
    weight: how much of both the attention takes over, 0 to 1; 0 is the plain run, bit for bit.
    control: how the predictions of each step follow what is seen in the references; None: not at all. It takes passes
        forward and back through the previewer and the network that sees, in every step of its own. This is the
        "style_descriptor" where the parts have one, else the image encoder, which does not tell style from content.

    Raises InvalidSettings without an image, for control without a style, for a mask that is empty or of no content.
    """

    image: Tensor | None = None
    content: Tensor | None = None
    content_mask: Tensor | None = None
    weight: float = 1.0
    control: ControlSteps | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_references(self.image, self.content, self.content_mask)
        if self.control is not None and self.image is None:
            raise InvalidSettings("control of a run's predictions needs a style")

    def __call__(self, parts: Parts, run: Run) -> Generated:
        """The run with the references. Raises what it raises, MissingPart, and InvalidSettings for a weight."""
        style, content = (None if image is None else as_rgb(image) for image in (self.image, self.content))
        shown = {"style": style, "content": None if content is None else masked(content, self.content_mask)}
        images = {name: image for name, image in shown.items() if image is not None}

        def seen(net: nn.Module) -> dict[str, Tensor]:
            return {name: ImageEncoder(net).encode(image).cpu() for name, image in images.items()}

        found = parts.use("image_encoder", seen)
        references = References(
            style=found.get("style"),
            content=found.get("content"),
            weight=self.weight,
            start_percent=self.start_percent,
            end_percent=self.end_percent,
        )
        run = replace(run, attention=references)
        if self.control is None:
            return run(parts)
        given = [image for image in (style, content) if image is not None]
        return run.from_stage_c(parts, self._controlled(parts, run, given, self.control))

    def _controlled(self, parts: Parts, run: Run, images: list[Tensor], control: ControlSteps) -> Tensor:
        """Stage C's latents; previewer and descriptor stay in memory beside Stage C."""
        sizes, final = run.settings.sizes.stage_c[-2:], run.settings.final
        fitted = torch.cat([fit(image, *final) for image in images])
        mask = fitted_mask(self.content_mask, images[-1], final)
        latents = parts.use("effnet", lambda net: encode_stage_c(net, fitted, sizes))

        def steered(previewer: nn.Module, descriptor: nn.Module) -> Tensor:
            parameter = next(previewer.parameters())
            steering = style_control(lambda x: previewer(x.to(parameter)), look_of(descriptor), latents, mask, control)
            return parts.use("stage_c", replace(run, steering=steering).stage_c)

        kind = DESCRIPTOR if DESCRIPTOR in parts.sources else "image_encoder"
        return parts.use("previewer", lambda net: parts.use(kind, lambda descriptor: steered(net, descriptor)))


def look_of(net: nn.Module) -> Look:
    """What a style descriptor sees, or an image encoder, which does not tell style from content."""

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(net, StyleDescriptor):
            parameter = next(net.parameters())
            pixels = preprocess(images.to(parameter.device, torch.float32), net.config.image_size)
            return net(pixels.to(parameter.dtype))
        seen = ImageEncoder(net).encode(images)[:, 0]
        return seen, seen

    return look


def style_control(
    preview: Callable[[Tensor], Tensor], look: Look, latents: Tensor, mask: Tensor | None, settings: ControlSteps
) -> StyleControl:
    """The control of a run by references.

    preview: Stage C's latents [B, 16, h, w] -> images [B, 3, 8h, 8w]; gradients flow. latents: of the style, and of
    the content if there is one. mask: [1, 1, H, W], where the content counts.
    """
    images = preview(latents)
    style, _ = look(images[:1])
    content = look(masked(images[1:], mask))[1] if len(images) > 1 else None
    return StyleControl(lambda x0: look(preview(x0)), style, content, settings)


def check_references(style: Tensor | None, content: Tensor | None, mask: Tensor | None) -> None:
    """Raises InvalidSettings without a reference, and for a content's mask that is empty or for no content."""
    if style is None and content is None:
        raise InvalidSettings("there is neither a style nor a content: give at least one image of reference")
    if mask is None:
        return
    if content is None:
        raise InvalidSettings("a content mask needs the content, the image that it belongs to")
    if len(mask) != 1:
        raise InvalidSettings(f"the content has one mask, and these are {len(mask)}")
    if not bool(mask.any()):
        raise InvalidSettings("the content mask is empty: paint what of the content should count")


def masked(images: Tensor, mask: Tensor | None) -> Tensor:
    """Images [B, 3, H, W], black where a mask [1, 1, H', W'] is 0."""
    return images if mask is None else images * resize_mask(mask.to(images), images.shape[-2:])


def fitted_mask(mask: Tensor | None, image: Tensor, size: tuple[int, int]) -> Tensor | None:
    """A mask [1, 1, H', W'] of an image [1, 3, H, W], cut as `images.fit` cuts that to a size."""
    return None if mask is None else fit(resize_mask(mask, image.shape[-2:]), *size)
