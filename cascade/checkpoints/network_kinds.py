"""The kinds of network that a checkpoint can contain: their classes, configs, released sizes and titles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .. import models
from ..models import Config, Process, StackConfig
from .clip import ClipTextConfig, ClipVisionConfig
from .descriptor import StyleDescriptorConfig


@dataclass(frozen=True)
class Kind:
    """One kind of network.

    Args:
        title: for messages.
        folder: where it belongs under ComfyUI's models folder.
        config: class of its config.
        network: (config, ops) -> network.
        released: name -> config of the released sizes.
    """

    title: str
    folder: str
    config: type[Any]
    network: Callable[[Any, Any], nn.Module]
    released: Mapping[str, Config] = field(default_factory=dict)


def _ours(network: type[nn.Module]) -> Callable[[Any, Any], nn.Module]:
    return lambda config, ops: network(config, ops=ops)


KINDS: Mapping[str, Kind] = {
    "stage_c": Kind(
        "Stage C",
        "diffusion_models",
        models.StageCConfig,
        _ours(models.StageC),
        {"3.6B": models.STAGE_C_3_6B, "1B": models.STAGE_C_1B},
    ),
    "stage_b": Kind(
        "Stage B",
        "diffusion_models",
        models.StageBConfig,
        _ours(models.StageB),
        {"1.5B": models.STAGE_B_1_5B, "700M": models.STAGE_B_700M},
    ),
    "stage_a": Kind("Stage A", "vae", models.StageAConfig, _ours(models.StageA), {"": models.STAGE_A}),
    "effnet": Kind(
        "EfficientNet encoder", "vae", models.EffnetConfig, _ours(models.EffnetEncoder), {"": models.EFFNET_V2_S}
    ),
    "previewer": Kind("Previewer", "vae", models.PreviewerConfig, _ours(models.Previewer), {"": models.PREVIEWER}),
    "controlnet": Kind(
        "ControlNet",
        "controlnet",
        models.ControlNetConfig,
        _ours(models.ControlNet),
        {
            "canny": models.CONTROLNET_CANNY,
            "inpainting": models.CONTROLNET_INPAINTING,
            "super resolution": models.CONTROLNET_SUPER_RESOLUTION,
            "identity": models.CONTROLNET_IDENTITY,
        },
    ),
    "high_res_guide": Kind(
        "High-res guide of one place", "model_patches", models.HighResGuideConfig, _ours(models.HighResGuide)
    ),
    "high_res_guides": Kind(
        "High-res guides",
        "model_patches",
        models.HighResGuideConfig,
        _ours(models.HighResGuides),
        {"UltraPixel": models.ULTRAPIXEL},
    ),
    "prior": Kind("Prior", "model_patches", models.PriorConfig, _ours(models.Prior)),
    "ip_adapter": Kind("IP-Adapter", "model_patches", models.IPAdapterConfig, _ours(models.IPAdapter)),
    # Networks of transformers ignore `ops`.
    "text_encoder": Kind(
        "Text encoder",
        "text_encoders",
        ClipTextConfig,
        lambda config, ops: config.network(),
        {"CLIP bigG/14": ClipTextConfig()},
    ),
    "image_encoder": Kind(
        "Image encoder",
        "clip_vision",
        ClipVisionConfig,
        lambda config, ops: config.network(),
        {"CLIP ViT-L/14": ClipVisionConfig()},
    ),
    "style_descriptor": Kind(
        "Style descriptor",
        "clip_vision",
        StyleDescriptorConfig,
        lambda config, ops: config.network(),
        {"CSD ViT-L/14": StyleDescriptorConfig()},
    ),
}

NETWORKS: Mapping[str, str] = {
    "StageC": "stage_c",
    "StageB": "stage_b",
    "StageA": "stage_a",
    "EffnetEncoder": "effnet",
    "Previewer": "previewer",
    "ControlNet": "controlnet",
    "HighResGuide": "high_res_guide",
    "HighResGuides": "high_res_guides",
    "Prior": "prior",
    "IPAdapter": "ip_adapter",
    "CLIPTextModelWithProjection": "text_encoder",
    "CLIPVisionModelWithProjection": "image_encoder",
    "StyleDescriptor": "style_descriptor",
}
"""Class name -> kind. By name, so that transformers is not imported for this."""


def kind_of(net: nn.Module) -> str:
    """The kind of a network, by its class or a base class.

    Raises:
        TypeError: not a network of Stable Cascade.
    """
    for cls in type(net).__mro__:
        if cls.__name__ in NETWORKS:
            return NETWORKS[cls.__name__]
    raise TypeError(f"a {type(net).__name__} is not a part of Stable Cascade")


def config_of(net: nn.Module) -> Config:
    """The config of a network of any kind. Raises TypeError as `kind_of`."""
    kind, config = kind_of(net), net.config
    return config if isinstance(config, Config) else KINDS[kind].config.from_transformers(config)


MAX_BLOCKS = 2000
"""Blocks of a network, which cost time and memory to build even without weights; no released network has 300."""


def blocks_of(data: Any) -> int:
    """An upper bound of the blocks that a config, as plain data, would build: checked before a network is built."""
    if isinstance(data, list | tuple):
        return len(data) + sum(blocks_of(item) for item in data)
    if not isinstance(data, dict):
        return 0
    pattern = data.get("pattern", "")
    repeated = len(pattern) if isinstance(pattern, str) else 0
    counts = (
        "depth",
        "down_repeats",
        "up_repeats",
        "bottleneck_blocks",
        "levels",
        "num_hidden_layers",
        "condition_tokens",
    )
    own = sum(value for name in counts if isinstance(value := data.get(name), int))
    return own * max(1, repeated) + sum(blocks_of(value) for value in data.values())


def empty_network(kind: str, config: Config, ops: Any = nn) -> nn.Module:
    """A network on the meta device: names and shapes without memory for weights.

    Raises:
        ValueError: a network of absurdly many blocks.
    """
    if (blocks := blocks_of(config.to_dict())) > MAX_BLOCKS:
        raise ValueError(f"it has {blocks:,} blocks; more than {MAX_BLOCKS:,} cannot be right")
    with torch.device("meta"):
        return KINDS[kind].network(config, ops)


def variant(kind: str, config: Config) -> str:
    """For messages: "Stage B, 700M", "ControlNet, canny", "Stage A", "Stage C, custom", "Stage C, 1B, predicts v"."""
    process = ""
    if isinstance(config, StackConfig) and config.process != Process():
        process = f", predicts {config.process.target}"
        config = replace(config, process=Process())
    name = next((name for name, released in KINDS[kind].released.items() if released == config), "custom")
    return (f"{KINDS[kind].title}, {name}" if name else KINDS[kind].title) + process
