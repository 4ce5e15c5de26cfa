"""References for style and content by attention feature aggregation (Rout et al. 2024, RB-Modulation, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioning import StageCInputs
from ..diffusion import InInterval
from ..errors import InvalidSettings
from ..models import AroundAttention, AttentionCall
from .attention import AttentionController, NetworkCall


@dataclass(frozen=True, kw_only=True)
class References(InInterval, AttentionController):
    """Controls a run whose conditions are `inputs`: an image says how it looks, and another one what it shows.

    In every attention block the results over several sets of tokens are averaged; the image's own tokens are in each.
    With a style: the text; the text and the style; the style in the place of the text's pooled tokens. With a content
    too: the text; the text and the content; all of them; the text and the style. With a content alone, where these are
    two: the text; the text and the content. A style is the mean of the tokens of its image.

    style, content: image embeddings [1 or B, 1, c], at least one of them.
    weight: how much of this is mixed into what the block would compute without references, 0 to 1.

    Raises InvalidSettings for a weight outside 0 to 1, and without a reference.
    """

    style: Tensor | None = None
    content: Tensor | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight <= 1:
            raise InvalidSettings(f"the weight of a style must be from 0 to 1, got {self.weight}")
        if not self._given:
            raise InvalidSettings("references are a style, a content or both, and there is none")

    @property
    def _given(self) -> list[Tensor]:
        """In the order of their tokens."""
        return [image for image in (self.content, self.style) if image is not None]

    def inputs(self, cond: StageCInputs) -> StageCInputs:
        """The conditions with the references' image embeddings after the others. Raises as `check`."""
        self.check(len(cond.clip_img))
        images = [image.expand(len(cond.clip_img), -1, -1).to(cond.clip_img) for image in self._given]
        return StageCInputs(cond.clip_text, cond.clip_text_pooled, torch.cat([cond.clip_img, *images], dim=1))

    def check(self, images: int) -> None:
        """Raises InvalidSettings for references that are neither one nor as many as the images."""
        if wrong := [len(image) for image in self._given if len(image) not in (1, images)]:
            raise InvalidSettings(
                f"there are {wrong[0]} references for {images} images: give one for all, or one for each"
            )

    def around(self, call: NetworkCall) -> AroundAttention:
        weight = self.weight if call.percent in self.interval else 0.0
        return lambda block: self._attend(call, block, weight)

    def _attend(self, call: NetworkCall, block: AttentionCall, weight: float) -> Tensor:
        keys, each = block.k.shape[1], call.tokens.each
        first = keys - each * len(self._given)
        found = self._aggregated(call, block, first) if weight else None
        if found is not None and weight == 1:
            return found
        plain = block.attend(block.q, block.k[:, :first], block.v[:, :first], block.heads)
        return plain if found is None else torch.lerp(plain, found, weight)

    def _aggregated(self, call: NetworkCall, block: AttentionCall, first: int) -> Tensor:
        """The mean over the sets of tokens; those of the references begin at `first`."""
        keys, each = block.k.shape[1], call.tokens.each
        text = call.tokens.text_among(keys)
        own_and_text = slice(0, text.stop)
        pooled = slice(text.stop, text.stop + call.tokens.pooled)

        def over(*tokens: slice, style: bool = False) -> Tensor:
            k, v = (
                torch.cat([*(x[:, part] for part in tokens), *([_mean(x[:, -each:])] if style else [])], dim=1)
                for x in (block.k, block.v)
            )
            return block.attend(block.q, k, v, block.heads)

        plain, content = over(own_and_text, pooled), slice(first, first + each)
        if self.style is None:
            return (plain + over(own_and_text, pooled, content)) / 2
        with_style = over(own_and_text, pooled, style=True)
        if self.content is None:
            return (plain + with_style + over(own_and_text, style=True)) / 3
        all_of_them = over(own_and_text, pooled, content, style=True)
        return (plain + over(own_and_text, pooled, content) + all_of_them + with_style) / 4


def _mean(tokens: Tensor) -> Tensor:
    """Tokens [B, n, c], each the mean of all."""
    return tokens.mean(1, keepdim=True).expand_as(tokens)
