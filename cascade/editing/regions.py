"""Regional prompts in one pass: the tokens of a region's prompt are seen by its part of the image alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditioning import StageCInputs, TextEmbedding
from ..errors import InvalidSettings
from ..models import AroundAttention
from .attention import NetworkCall
from .seen import Seen

MOST_TOKENS = 77 * 32
"""Text tokens of all regions together: each is read by every position of the image in every block."""


@dataclass(frozen=True)
class Region:
    """A part of the image with a prompt of its own.

    mask: [1, 1, H, W] in [0, 1], of any size; it is scaled to the image. Soft edges blend into the other regions and
        the base prompt.
    text: of its prompt, batch 1.
    """

    mask: Tensor
    text: TextEmbedding


def box_mask(box: Sequence[float], side: int = 512) -> Tensor:
    """The mask [1, 1, side, side] of a box: left, top, right, bottom from 0 to 1.

    Raises InvalidSettings for a box outside the image or without an area.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InvalidSettings(
            f"the box {left:g},{top:g},{right:g},{bottom:g} is not in the image: left,top,right,bottom are numbers "
            "from 0 to 1, left below right and top below bottom"
        )
    mask = torch.zeros(1, 1, side, side)
    columns, rows = (
        slice(round(a * side), max(round(a * side) + 1, round(b * side))) for a, b in ((left, right), (top, bottom))
    )
    mask[..., rows, columns] = 1
    return mask


class Regions(Seen):
    """Controls a run whose conditions are `inputs`, for all its images.

    regions: where they overlap they share the place. base: how much of the base prompt is seen inside regions, 0 to 1.

    Raises InvalidSettings for an empty mask, and for more regions than tokens can be read.
    """

    def __init__(self, regions: Sequence[Region], base: float = 0.2) -> None:
        for number, region in enumerate(regions, 1):
            if not bool((region.mask > 0).any()):
                raise InvalidSettings(f"the mask of region {number} is empty: paint where its prompt should act")
        tokens = sum(region.text.hidden.shape[1] for region in regions)
        if tokens > MOST_TOKENS:
            raise InvalidSettings(
                f"the prompts of {len(regions)} regions have {tokens} tokens, and at most {MOST_TOKENS} can be read: "
                "use fewer regions or shorter prompts"
            )
        super().__init__()
        self.regions, self.base = regions, base

    def inputs(self, cond: StageCInputs) -> StageCInputs:
        """The conditions of the base prompt with those of the regions after them."""
        texts = [region.text.expand(len(cond.clip_text)) for region in self.regions]
        return StageCInputs(
            torch.cat([cond.clip_text, *(text.hidden.to(cond.clip_text) for text in texts)], dim=1),
            torch.cat([cond.clip_text_pooled, *(text.pooled.to(cond.clip_text_pooled) for text in texts)], dim=1),
            cond.clip_img,
        )

    def around(self, call: NetworkCall) -> AroundAttention | None:
        return super().around(call) if True in call.with_prompt else None

    def state(self, call: NetworkCall, block: int, with_prompt: bool) -> Hashable:
        return () if with_prompt else None

    def shares(self, state: Hashable, call: NetworkCall, size: tuple[int, int], with_prompt: bool) -> Tensor:
        shares = self._shares(size)
        each = call.tokens.pooled // len(shares)
        lengths = [region.text.hidden.shape[1] for region in self.regions]
        counts = [call.tokens.text - sum(lengths), *lengths]
        columns = [share.expand(count, -1) for share, count in zip(shares, counts, strict=True)]
        columns += [share.expand(each, -1) for share in shares]
        columns += [torch.ones(call.tokens.images, shares.shape[1])]
        return torch.cat(columns).T

    def _shares(self, size: tuple[int, int]) -> Tensor:
        """How much of each prompt, the base first, a position sees [1 + regions, h w]; they add up to 1."""
        masks = torch.cat([F.adaptive_avg_pool2d(region.mask.float(), size) for region in self.regions]).flatten(1)
        masks = masks / masks.sum(0).clamp(min=1) * (1 - self.base)
        return torch.cat([(1 - masks.sum(0, keepdim=True)).clamp(min=0), masks])
