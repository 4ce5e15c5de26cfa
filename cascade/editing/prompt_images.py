"""Image prompts: image embeddings beside the text, each with a weight, a place, a part of the run and its blocks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditioning import StageCInputs
from ..diffusion import InInterval
from ..diffusion.mixing import blend
from ..errors import IncompatibleCheckpoint, InvalidSettings
from .attention import AttentionController, NetworkCall
from .blocks import ALL, BlockWeights
from .ip_adapter import IPAdapters
from .seen import Seen, Together

MOST_IMAGES = 64
"""Embeddings of all image prompts together: every position of the image reads 4 tokens of each in every block."""


@dataclass(frozen=True)
class PromptImages:
    """k images with their weights. embeddings: [1 or B, k, c]; weights: one for each, above 0."""

    embeddings: Tensor
    weights: tuple[float, ...]


def concat(embeddings: Sequence[Tensor], weights: Sequence[float]) -> PromptImages:
    """Each image by itself; one with a weight below 0 is the opposite of its embedding."""
    kept = [(x if weight > 0 else -x, abs(weight)) for x, weight in zip(embeddings, weights, strict=True) if weight]
    found = torch.cat([x for x, _ in kept], dim=1) if kept else embeddings[0][:, :0]
    return PromptImages(found, tuple(weight for _, weight in kept))


def average(embeddings: Sequence[Tensor], weights: Sequence[float]) -> PromptImages:
    """One embedding between all, closer to those of larger weights."""
    kept = [(x, weight) for x, weight in zip(embeddings, weights, strict=True) if weight]
    return concat([blend(*map(list, zip(*kept, strict=True)))], [1.0]) if kept else concat(embeddings[:1], [0.0])


def subtract(embeddings: Sequence[Tensor], weights: Sequence[float]) -> PromptImages:
    """One embedding: the first image without what the others have."""
    first, *others = weights
    return average(embeddings, [first, *(-weight for weight in others)])


Combine = Callable[[Sequence[Tensor], Sequence[float]], PromptImages]
COMBINE: dict[str, Combine] = {"concat": concat, "average": average, "subtract": subtract}
"""Of embeddings [1 or B, 1, c] and their weights: what Stage C gets. An image of weight 0 is left out."""


@dataclass(frozen=True, kw_only=True)
class PlacedImages(InInterval):
    """Images, and where Stage C sees them.

    mask: [1, 1, H, W] in [0, 1] of any size, white where they count, soft edges blend; None: everywhere.
    strength: how much of them is seen, 0 to 1.

    Raises InvalidSettings for a wrong strength, and for an empty mask.
    """

    images: PromptImages
    mask: Tensor | None = None
    blocks: BlockWeights = ALL
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength <= 1:
            raise InvalidSettings(f"the strength of an image prompt must be from 0 to 1, got {self.strength}")
        if self.mask is not None and not bool((self.mask > 0).any()):
            raise InvalidSettings("the mask of an image prompt is empty: paint where the image should count")

    @property
    def everywhere(self) -> bool:
        """Whether they are seen as any other token: at all places, in all steps and blocks."""
        as_trained = self.strength == 1 and set(self.images.weights) <= {1.0} and self.blocks == ALL
        return as_trained and self.mask is None and (self.start_percent, self.end_percent) == (0.0, 1.0)

    def share(self, call: NetworkCall, block: int) -> float:
        """How much a block sees of them in a call."""
        return self.strength * self.blocks.at(block, call.blocks) if call.percent in self.interval else 0.0


class SeenImages(Seen):
    """Controls a run whose conditions are `inputs` and `negative_inputs`, for all its images.

    Where an image is not seen in full, zeros are seen in its place, which are what Stage C sees without image prompts.

    images: beside the prompt. negative: beside the negative prompt.

    Raises InvalidSettings for more images than can be read.
    """

    def __init__(self, images: Sequence[PlacedImages] = (), negative: Sequence[PlacedImages] = ()) -> None:
        super().__init__()
        self._placed = {
            with_prompt: [each for each in given if each.strength and each.images.weights]
            for with_prompt, given in ((True, images), (False, negative))
        }
        count = max(sum(len(each.images.weights) for each in placed) for placed in self._placed.values())
        if count > MOST_IMAGES:
            raise InvalidSettings(
                f"the image prompts have {count} images, and at most {MOST_IMAGES} can be read: use fewer, or combine "
                "them by average"
            )

    @property
    def acting(self) -> bool:
        """Whether attention is controlled at all."""
        return any(self._controlled(with_prompt) for with_prompt in self._placed)

    def inputs(self, cond: StageCInputs) -> StageCInputs:
        """The conditions of a prompt alone, with the images of the prompt."""
        return self._with(cond, with_prompt=True)

    def negative_inputs(self, cond: StageCInputs) -> StageCInputs:
        """The conditions of a negative prompt alone, with its images."""
        return self._with(cond, with_prompt=False)

    def beside(self, attention: AttentionController | None) -> AttentionController | None:
        """What controls attention in a run that `attention` controls too. Raises InvalidSettings if both cannot."""
        if not self.acting or attention is None:
            return self if self.acting else attention
        if isinstance(attention, IPAdapters):
            return IPAdapters(attention.images, within=self.beside(attention.within))
        if isinstance(attention, Seen):
            return Together([attention, self])
        raise InvalidSettings(
            "image prompts with weights, a mask, a part of the run or of the blocks control attention, and so does a "
            "style: use one of them"
        )

    def of(self, rows: Sequence[int]) -> SeenImages:
        """For some of the images of a batch."""
        return SeenImages(*([_rows(each, rows) for each in placed] for placed in self._placed.values()))

    def state(self, call: NetworkCall, block: int, with_prompt: bool) -> Hashable:
        if not self._controlled(with_prompt):
            return None
        return tuple(each.share(call, block) for each in self._placed[with_prompt])

    def shares(self, state: Hashable, call: NetworkCall, size: tuple[int, int], with_prompt: bool) -> Tensor:
        assert isinstance(state, tuple)
        found = []
        for share, each in zip(state, self._placed[with_prompt], strict=True):
            places = torch.ones(1) if each.mask is None else F.adaptive_avg_pool2d(each.mask.float(), size).flatten()
            found.append(share * places[:, None] * torch.tensor(each.images.weights))
        places = max(map(len, found))
        images = torch.cat([shares.expand(places, -1) for shares in found], dim=1)
        none = 1 - images.amax(1, keepdim=True).clamp(max=1)
        seen = torch.cat([none, images], dim=1).repeat_interleave(call.tokens.each, dim=1)
        return F.pad(seen, (call.tokens.text + call.tokens.pooled, 0), value=1.0)

    def _controlled(self, with_prompt: bool) -> bool:
        return not all(each.everywhere for each in self._placed[with_prompt])

    def _with(self, cond: StageCInputs, *, with_prompt: bool) -> StageCInputs:
        placed = self._placed[with_prompt]
        if not placed:
            return cond
        none = cond.clip_img if self._controlled(with_prompt) else cond.clip_img[:, :0]
        images = [each.images.embeddings.to(cond.clip_img) for each in placed]
        if wrong := [x.shape[-1] for x in images if x.shape[-1] != cond.clip_img.shape[-1]]:
            raise IncompatibleCheckpoint(
                f"Stage C reads image embeddings of width {cond.clip_img.shape[-1]}, and these have {wrong[0]}: load "
                "the image encoder that was trained with it"
            )
        rows = max(map(len, [none, *images]))
        return replace(cond, clip_img=torch.cat([x.expand(rows, -1, -1) for x in (none, *images)], dim=1))


def _rows(placed: PlacedImages, rows: Sequence[int]) -> PlacedImages:
    embeddings = placed.images.embeddings
    found = embeddings if len(embeddings) == 1 else embeddings[list(rows)]
    return replace(placed, images=replace(placed.images, embeddings=found))
