"""Descriptors of style and content of CSD (Somepalli et al. 2024, *Measuring Style Similarity in Diffusion Models*)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip import ClipVisionConfig


@dataclass(frozen=True, kw_only=True)
class StyleDescriptorConfig(ClipVisionConfig):
    """Sizes of its vision model, CLIP ViT-L/14 by default, and of its two heads."""

    def network(self) -> StyleDescriptor:
        return StyleDescriptor(self)


class StyleDescriptor(nn.Module):
    """CLIP's vision model with two heads in the place of its projection: one for style, one for content."""

    def __init__(self, config: StyleDescriptorConfig) -> None:
        super().__init__()
        self.config = config
        tower: Any = ClipVisionConfig.network(config)
        self.vision_model = tower.vision_model
        width, size = config.hidden_size, config.projection_dim
        self.style, self.content = (nn.Parameter(torch.empty(width, size)) for _ in range(2))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors of style and of content [B, c] each, of length 1, of preprocessed images [B, 3, size, size]."""
        seen = self.vision_model(pixel_values=pixel_values).pooler_output
        return F.normalize(seen @ self.style, dim=1), F.normalize(seen @ self.content, dim=1)
