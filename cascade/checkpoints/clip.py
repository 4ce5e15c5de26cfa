"""The text encoder and the image encoder of CLIP: configs of ours, networks from transformers (imported on use)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from ..models import Config
from ..models.config import check_types


@dataclass(frozen=True, kw_only=True)
class ClipConfig(Config):
    """The common sizes of both encoders, under the names of transformers."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_dim: int
    hidden_act: str
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(f"a width of {self.hidden_size} cannot have {self.num_attention_heads} attention heads")

    @classmethod
    def from_transformers(cls, config: Any) -> Self:
        """From transformers' config object or its config.json as a dict; unknown names are ignored."""
        data = config if isinstance(config, dict) else config.to_dict()
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig(ClipConfig):
    """Sizes of the text encoder; by default the released one, CLIP bigG/14."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 20
    projection_dim: int = 1280
    hidden_act: str = "gelu"
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407

    def network(self) -> nn.Module:
        """A `transformers.CLIPTextModelWithProjection`."""
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        return _built(CLIPTextModelWithProjection, CLIPTextConfig, self.to_dict())


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(ClipConfig):
    """Sizes of the image encoder; by default the released one, CLIP ViT-L/14."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    projection_dim: int = 768
    hidden_act: str = "quick_gelu"
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3

    def network(self) -> nn.Module:
        """A `transformers.CLIPVisionModelWithProjection`."""
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        return _built(CLIPVisionModelWithProjection, CLIPVisionConfig, self.to_dict())


def _built(network: Any, config: Any, sizes: dict[str, Any]) -> nn.Module:
    """A network of transformers. Raises ValueError if transformers refuses its config."""
    try:
        return network(config(**sizes))
    except Exception as error:  # its checks have types of their own, which depend on the version
        raise ValueError(f"transformers refuses its config: {error}") from error


def place_position_ids(net: nn.Module, device: torch.device | str) -> None:
    """Fill the `position_ids` of a CLIP encoder made on the meta device: today's checkpoints do not contain them."""
    for module in net.modules():
        ids = module._buffers.get("position_ids")
        if ids is not None:
            module.register_buffer("position_ids", torch.arange(ids.shape[-1], device=device)[None], persistent=False)
