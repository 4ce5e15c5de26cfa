"""Images beside the prompt of a run, by an IP-Adapter (Ye et al. 2023, arXiv 2308.06721): attention is added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditioning import StageCInputs
from ..diffusion import InInterval
from ..errors import InvalidSettings
from ..models import AroundAttention, AttentionCall, StageC
from ..models.ip_adapter import KeysValues, check_stage_c, image_attention
from .attention import AttentionController, NetworkCall
from .blocks import ALL, BlockWeights


@dataclass(frozen=True, kw_only=True)
class AdapterTokens(InInterval):
    """The tokens of one or several images, as an adapter gives them to Stage C, and how they act.

    keys_values: of `IPAdapter.forward`, [1, n, c] each; the tokens of several images follow each other.
    weight: a factor of what is added; 0 is the run without it, bit for bit.
    blocks: another factor in each attention block.
    mask: [1, 1, H, W] in [0, 1], where the images count; it is scaled to the image. None: everywhere.

    Raises InvalidSettings for an empty mask.
    """

    keys_values: KeysValues
    weight: float = 1.0
    blocks: BlockWeights = ALL
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None and not bool((self.mask > 0).any()):
            raise InvalidSettings("the mask of the IP-Adapter is empty: paint where the image should count")


class IPAdapters(AttentionController):
    """Controls a run: every image with a prompt also follows the images of adapters.

    In every attention block the same queries look at the tokens of each of `images`, on their own, and what they find
    is added (eq. 5). The part of a run without the prompt, by which it is guided, is as without them.

    within: what else controls attention in the run.
    """

    def __init__(self, images: Sequence[AdapterTokens], within: AttentionController | None = None) -> None:
        self.images, self.within = images, within
        self._placed: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, tuple[int, int]], Tensor] = {}

    def inputs(self, cond: StageCInputs) -> StageCInputs:
        return cond if self.within is None else self.within.inputs(cond)

    def check_network(self, net: StageC) -> None:
        for each in self.images:
            check_stage_c([k.shape[-1] for k, _ in each.keys_values], net)
        if self.within is not None:
            self.within.check_network(net)

    def around(self, call: NetworkCall) -> AroundAttention | None:
        return self.over(call, None if self.within is None else self.within.around(call))

    def over(self, call: NetworkCall, inner: AroundAttention | None) -> AroundAttention | None:
        """As `around`, with what the blocks do in this call in place of what `within` says."""
        acting = [i for i, each in enumerate(self.images) if each.weight != 0 and call.percent in each.interval]
        if not acting or True not in call.with_prompt:
            return inner

        def attend(block: AttentionCall) -> Tensor:
            made = block.plain() if inner is None else inner(block)
            rows = call.rows(len(block.q))
            shown = block._replace(q=block.q[rows])
            weights = {i: self.images[i].weight * self.images[i].blocks.at(block.block, call.blocks) for i in acting}
            found = [self._found(i, weight, shown) for i, weight in weights.items() if weight]
            if not found:
                return made
            made = made.clone()
            made[rows] += torch.stack(found).sum(0)
            return made

        return attend

    def _found(self, number: int, weight: float, block: AttentionCall) -> Tensor:
        """What is added for some of the images [B, h w, c]."""
        tokens, key = self.images[number], (number, block.block)
        if key not in self._placed:
            k, v = tokens.keys_values[block.block]
            self._placed[key] = k.to(block.q), v.to(block.q)
        found = weight * image_attention(block, *self._placed[key])
        return found if tokens.mask is None else found * self._mask(number, tokens.mask, block)

    def _mask(self, number: int, mask: Tensor, block: AttentionCall) -> Tensor:
        """How much of an image each position gets [1, h w, 1]."""
        key = (number, block.size)
        if key not in self._masks:
            self._masks[key] = F.adaptive_avg_pool2d(mask.float(), block.size).flatten(2).mT.to(block.q)
        return self._masks[key]
