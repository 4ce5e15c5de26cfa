"""Images beside the prompt of a run, by an IP-Adapter (Ye et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..conditioning import ImageEncoder
from ..diffusion import InInterval
from ..editing import BLOCK_WEIGHTS, AdapterTokens, BlockWeights, IPAdapters
from ..images import as_rgb
from ..models import IPAdapter
from ..models.ip_adapter import check_encoder
from .networks import Parts

if TYPE_CHECKING:
    from .generate import Run


@dataclass(frozen=True, kw_only=True)
class IPAdapterImages(InInterval):
    """Images that a run follows beside its prompt.

    adapter: of the Stage C that runs and of its image encoder.
    images: [N, 3, H, W] in [0, 1]; the run follows all of them at once.
    weight: a factor of what they add; 0 is the plain run, bit for bit.
    blocks: another factor in each attention block.
    mask: [1, 1, H, W] in [0, 1], where they count; it is scaled to the run's images. None: everywhere.
    """

    adapter: IPAdapter
    images: Tensor
    weight: float = 1.0
    blocks: BlockWeights = BLOCK_WEIGHTS["all"]
    mask: Tensor | None = None

    def encoded(self, encoder: Any) -> AdapterTokens:
        """As an image encoder sees them. Raises IncompatibleCheckpoint for one that the adapter was not trained with,
        InvalidSettings as `AdapterTokens`."""
        check_encoder(self.adapter.config, int(encoder.config.hidden_size))
        features = ImageEncoder(encoder).hidden_states(as_rgb(self.images))
        keys_values = keys_values_of(self.adapter, features)
        options = {"start_percent": self.start_percent, "end_percent": self.end_percent, "mask": self.mask}
        return AdapterTokens(keys_values=keys_values, weight=self.weight, blocks=self.blocks, **options)


def keys_values_of(adapter: IPAdapter, features: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The adapter's keys and values [1, n, c] of all images of features [N, m, c] together, on the CPU."""
    found = adapter(features.to(adapter.queries.device, adapter.mapper.weight.dtype))
    return [(k.flatten(0, 1)[None].cpu(), v.flatten(0, 1)[None].cpu()) for k, v in found]


def following(parts: Parts, run: Run, images: Sequence[IPAdapterImages]) -> Run:
    """The same run, which follows the images too. Raises MissingPart, and what `IPAdapterImages.encoded` raises."""
    acting = [each for each in images if each.weight != 0]
    if not acting:
        return run
    with torch.no_grad():
        seen = parts.use("image_encoder", lambda net: [each.encoded(net) for each in acting])
    return replace(run, attention=IPAdapters(seen, within=run.attention))
