"""A network's config from the names and shapes of its tensors, of any size.

Shapes do not determine every field. `Inferred.guessed` names the fields that follow the rule of the released networks
(heads = width / 64), `Inferred.unknown` those for which that rule gives no value. Both are empty for a released size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..models import (
    CONTROLNET_CANNY,
    CONTROLNET_IDENTITY,
    ControlNetConfig,
    EffnetConfig,
    EffnetStage,
    HighResGuideConfig,
    IPAdapterConfig,
    Level,
    PreviewerConfig,
    PriorConfig,
    StageAConfig,
    StageBConfig,
    StageCConfig,
)
from .clip import ClipTextConfig, ClipVisionConfig
from .descriptor import StyleDescriptorConfig
from .network_kinds import KINDS

HEAD_WIDTH = 64
"""Channels per attention head in every released network."""


@dataclass(frozen=True)
class Inferred:
    """A config, and the names of its fields that are guessed or unknown."""

    config: Any
    guessed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Shapes:
    """Names and shapes of tensors, with the look-ups that the rules below use."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def size(self, name: str, dimension: int = 0) -> int:
        """A dimension's size. Raises ValueError if there is no such tensor or dimension, or if it is 0."""
        shape = self.shapes.get(name)
        if shape is None:
            raise ValueError(f"{name} is missing")
        if len(shape) <= dimension or shape[dimension] == 0:
            raise ValueError(f"{name} has the shape {list(shape)}")
        return shape[dimension]

    def count(self, template: str, start: int = 0) -> int:
        """How many names `template` with {} = start, start + 1, ... exist, up to the first that does not."""
        index = start
        while template.format(index) in self.shapes:
            index += 1
        return index - start


def infer(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> Inferred:
    """The config of a network whose tensors, under our names, have these shapes.

    Raises:
        ValueError: no network of this kind has such tensors.
    """
    found = _INFERENCES[kind](Shapes(shapes))
    if found.config in KINDS[kind].released.values():
        return Inferred(found.config)
    return found


def _heads(width: int) -> int:
    return width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1


def _unknown_heads(widths: Iterable[int]) -> tuple[str, ...]:
    return ("heads",) if any(width % HEAD_WIDTH for width in widths) else ()


def _block_letters(shapes: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """(level, block) on the way down -> the block's letter in `Level.pattern`."""
    marks = {"depthwise": "C", "mapper": "T", "attention": "A", "kv_mapper": "A"}
    letters: dict[tuple[int, int], str] = {}
    for name in shapes:
        parts = name.split(".")
        if parts[0] != "down_blocks" or len(parts) < 4 or not all(p.isascii() and p.isdecimal() for p in parts[1:3]):
            continue
        place = int(parts[1]), int(parts[2])
        # Only a feed-forward block has channelwise and nothing else.
        letters[place] = marks.get(parts[3], letters.get(place, "F"))
    return letters


def _pattern(sequence: str) -> str:
    """The shortest string of which the sequence is a repetition."""
    sizes = (size for size in range(1, len(sequence) + 1) if len(sequence) % size == 0)
    return next(sequence[:size] for size in sizes if sequence[:size] * (len(sequence) // size) == sequence)


def _width(shapes: Shapes, level: int, pattern: str) -> int:
    tensor, share = {
        "C": ("depthwise.weight", 1),
        "T": ("mapper.weight", 2),
        "A": ("attention.attn.out_proj.weight", 1),
        "F": ("channelwise.4.weight", 1),
    }[pattern[0]]
    return shapes.size(f"down_blocks.{level}.0.{tensor}") // share


def _levels(shapes: Shapes) -> tuple[Level, ...]:
    letters = _block_letters(shapes.shapes)
    levels: list[Level] = []
    count = 0
    while (count, 0) in letters:
        count += 1
    for i in range(count):
        sequence = ""
        while (i, len(sequence)) in letters:
            sequence += letters[i, len(sequence)]
        pattern = _pattern(sequence)
        width = _width(shapes, i, pattern)
        levels.append(
            Level(
                width=width,
                heads=_heads(width) if "A" in pattern else 0,
                depth=len(sequence) // len(pattern),
                pattern=pattern,
                down_repeats=1 + shapes.count(f"down_repeat_mappers.{i}.{{}}.weight"),
                up_repeats=1 + shapes.count(f"up_repeat_mappers.{count - 1 - i}.{{}}.weight"),
            )
        )
    if not levels:
        raise ValueError("there are no levels (down_blocks)")
    return tuple(levels)


def _stack(shapes: Shapes, levels: tuple[Level, ...], patch: int) -> dict[str, Any]:
    """The fields that Stage B and Stage C have in common."""
    folded = shapes.size("embedding.1.weight", 1)
    if folded % patch**2:
        raise ValueError(f"embedding.1.weight reads {folded} channels, not a multiple of {patch} x {patch}")
    found: dict[str, Any] = {"latent_channels": folded // patch**2, "patch_size": patch, "levels": levels}
    first = levels[0].pattern
    if "T" in first:
        block = f"down_blocks.0.{first.index('T')}."
        names = {
            name[len(block) + len("mapper_") : -len(".weight")]
            for name in shapes.shapes
            if name.startswith(f"{block}mapper_") and name.endswith(".weight")
        }
        found["timestep_channels"] = shapes.size(f"{block}mapper.weight", 1)
        found["timestep_conditions"] = tuple(sorted(names, key=lambda name: (name != "sca", name != "crp", name)))
    if "C" in first:
        found["kernel_size"] = shapes.size(f"down_blocks.0.{first.index('C')}.depthwise.weight", 2)
    return found


def _stage_c(shapes: Shapes) -> Inferred:
    levels = _levels(shapes)
    condition = shapes.size("clip_txt_mapper.weight")
    config = StageCConfig(
        **_stack(shapes, levels, patch=1),
        condition_channels=condition,
        condition_tokens=shapes.size("clip_txt_pooled_mapper.weight") // condition,
        clip_text=shapes.size("clip_txt_mapper.weight", 1),
        clip_text_pooled=shapes.size("clip_txt_pooled_mapper.weight", 1),
        clip_img=shapes.size("clip_img_mapper.weight", 1),
        switch_level=(False,) * (len(levels) - 1),
    )
    return Inferred(config, ("heads", "switch_level"), _unknown_heads(x.width for x in levels if x.heads))


def _stage_b(shapes: Shapes) -> Inferred:
    levels = _levels(shapes)
    pooled = shapes.size("clip_mapper.weight")
    readers = (
        f"down_blocks.{i}.{level.pattern.index('A')}.kv_mapper.1.weight"
        for i, level in enumerate(levels)
        if level.heads
    )
    reader = next(readers, None)
    condition = shapes.size(reader, 1) if reader else pooled // 4
    config = StageBConfig(
        **_stack(shapes, levels, patch=2),
        condition_channels=condition,
        condition_tokens=pooled // condition,
        clip=shapes.size("clip_mapper.weight", 1),
        effnet=shapes.size("effnet_mapper.0.weight", 1),
        pixels=shapes.size("pixels_mapper.0.weight", 1),
    )
    return Inferred(config, ("heads", "patch_size"), _unknown_heads(x.width for x in levels if x.heads))


def _stage_a(shapes: Shapes) -> Inferred:
    width = shapes.size("up_blocks.0.0.weight")
    config = StageAConfig(
        levels=(width // shapes.size("in_block.1.weight")).bit_length(),
        bottleneck_blocks=shapes.count("up_blocks.{}.gammas", start=1),
        width=width,
        latent_channels=shapes.size("up_blocks.0.0.weight", 1),
        codebook_size=shapes.size("vquantizer.codebook.weight"),
    )
    return Inferred(config, ("scale_factor",))


def _effnet(shapes: Shapes) -> Inferred:
    stages, known = _effnet_stages(shapes)
    config = EffnetConfig(
        in_channels=shapes.size("backbone.0.0.weight", 1),
        stem=shapes.size("backbone.0.0.weight"),
        stages=stages,
        head=shapes.size(f"backbone.{len(stages) + 1}.0.weight"),
        latent_channels=shapes.size("mapper.0.weight"),
    )
    return Inferred(config, ("strides",), () if known else ("strides",))


def _effnet_stages(shapes: Shapes) -> tuple[tuple[EffnetStage, ...], bool]:
    """The stages of a backbone, and whether it can have the released strides, which shapes do not determine."""
    released = EffnetConfig().stages
    count = shapes.count("backbone.{}.0.block.0.0.weight", start=1)
    known = count == len(released)
    stages: list[EffnetStage] = []
    for i in range(count):
        width_in = stages[-1].width if stages else shapes.size("backbone.0.0.weight")
        stages.append(_effnet_stage(shapes, i + 1, width_in, released[i].stride if known else 1))
    return tuple(stages), known


def _effnet_stage(shapes: Shapes, index: int, width_in: int, stride: int) -> EffnetStage:
    block = f"backbone.{index}.0.block"
    first = shapes.size(f"{block}.0.0.weight")
    fused = not any(f"{block}.{i}.fc1.weight" in shapes for i in (1, 2))
    # A block that does not widen lacks the convolution for it.
    widens = f"{block}.1.0.weight" in shapes if fused else f"{block}.2.fc1.weight" in shapes
    last = (0 if fused else 2) + widens
    return EffnetStage(
        fused=fused,
        expansion=first // width_in if widens else 1,
        stride=stride,
        width=shapes.size(f"{block}.{last}.0.weight"),
        depth=shapes.count(f"backbone.{index}.{{}}.block.0.0.weight"),
    )


def _previewer(shapes: Shapes) -> Inferred:
    config = PreviewerConfig(
        latent_channels=shapes.size("blocks.0.weight", 1),
        width=shapes.size("blocks.0.weight"),
        out_channels=shapes.size("blocks.24.weight"),
    )
    return Inferred(config)


def _controlnet(shapes: Shapes) -> Inferred:
    count = shapes.count("projections.{}.0.weight")
    released = {len(config.blocks): config.blocks for config in (CONTROLNET_CANNY, CONTROLNET_IDENTITY)}
    sizes, known = _controlnet_backbone(shapes)
    config = ControlNetConfig(
        width=shapes.size("projections.0.2.weight"),
        blocks=released.get(count, tuple(range(count))),
        **sizes,
    )
    unknown = (*(() if count in released else ("blocks",)), *(() if known else ("strides",)))
    return Inferred(config, ("blocks",), unknown)


def _controlnet_backbone(shapes: Shapes) -> tuple[dict[str, Any], bool]:
    """The fields of a ControlNet's backbone, and whether it can have the released strides."""
    if "backbone.0.0.weight" in shapes:
        stages, known = _effnet_stages(shapes)
        return {
            "in_channels": shapes.size("backbone.0.0.weight", 1),
            "features": shapes.size("projections.0.0.weight"),
            "stem": shapes.size("backbone.0.0.weight"),
            "stages": stages,
        }, known
    found: dict[str, Any] = {"in_channels": shapes.size("backbone.0.weight", 1), "backbone": "simple"}
    depth = shapes.count("backbone.{}.blocks.0.weight", start=3)
    if depth:
        found |= {
            "backbone": "large",
            "features": shapes.size("projections.0.0.weight"),
            "inside": (shapes.size("backbone.0.weight"), shapes.size("backbone.2.weight")),
            "depth": depth,
        }
    return found, True


GUIDE_HEAD_WIDTH = 32
"""Channels per attention head in the released high-res guides."""


def _high_res_guides(shapes: Shapes, start: str = "down.0.") -> Inferred:
    width = shapes.size(f"{start}input_layer.weight")
    config = HighResGuideConfig(
        stage_c_width=shapes.size(f"{start}input_layer.weight", 1),
        width=width,
        heads=width // GUIDE_HEAD_WIDTH if width % GUIDE_HEAD_WIDTH == 0 else 1,
        groups=shapes.size(f"{start}wtokens") // 2,
        timestep_channels=shapes.size(f"{start}mapp_t.mapper.weight", 1),
        levels=shapes.count("down.{}.wtokens") or HighResGuideConfig.levels,
    )
    return Inferred(config, ("heads",), ("heads",) if width % GUIDE_HEAD_WIDTH else ())


def _high_res_guide(shapes: Shapes) -> Inferred:
    return _high_res_guides(shapes, "")


def _prior(shapes: Shapes) -> Inferred:
    width = shapes.size("embedding.weight")
    config = PriorConfig(
        clip_img=shapes.size("embedding.weight", 1),
        clip_text=shapes.size("text_mapper.weight", 1),
        clip_text_pooled=shapes.size("pooled_mapper.weight", 1),
        width=width,
        heads=_heads(width),
        depth=shapes.count("blocks.{}.0.channelwise.0.weight"),
        timestep_channels=shapes.size("blocks.0.1.mapper.weight", 1),
    )
    return Inferred(config, ("heads",), _unknown_heads([width]))


def _ip_adapter(shapes: Shapes) -> Inferred:
    width = shapes.size("queries", 2)
    config = IPAdapterConfig(
        encoder=shapes.size("mapper.weight", 1),
        blocks=tuple(shapes.size(f"to_k.{i}.weight") for i in range(shapes.count("to_k.{}.weight"))),
        tokens=shapes.size("queries", 1),
        width=width,
        heads=_heads(width),
        depth=shapes.count("layers.{}.to_q.weight"),
    )
    return Inferred(config, ("heads",), _unknown_heads([width]))


def _text_encoder(shapes: Shapes) -> Inferred:
    width = shapes.size("text_model.embeddings.token_embedding.weight", 1)
    config = ClipTextConfig(
        **_tower(shapes, "text_model", width),
        projection_dim=shapes.size("text_projection.weight"),
        # OpenAI's own text encoders, of which this is the largest, were trained with the quick form.
        hidden_act="quick_gelu" if width == 768 else "gelu",
        vocab_size=shapes.size("text_model.embeddings.token_embedding.weight"),
        max_position_embeddings=shapes.size("text_model.embeddings.position_embedding.weight"),
    )
    return Inferred(config, ("heads", "hidden_act"), _unknown_heads([width]))


def _image_encoder(shapes: Shapes) -> Inferred:
    sizes, unknown = _vision(shapes)
    config = ClipVisionConfig(**sizes, projection_dim=shapes.size("visual_projection.weight"))
    return Inferred(config, ("heads", "hidden_act"), unknown)


def _style_descriptor(shapes: Shapes) -> Inferred:
    sizes, unknown = _vision(shapes)
    return Inferred(StyleDescriptorConfig(**sizes, projection_dim=shapes.size("style", 1)), ("heads",), unknown)


def _vision(shapes: Shapes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sizes of CLIP's vision model, and the names of those that its shapes do not tell."""
    patches = "vision_model.embeddings.patch_embedding.weight"
    width, patch = shapes.size(patches), shapes.size(patches, 2)
    side = math.isqrt(shapes.size("vision_model.embeddings.position_embedding.weight") - 1)
    sizes = {
        **_tower(shapes, "vision_model", width),
        "hidden_act": "quick_gelu" if width <= 1024 else "gelu",
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": shapes.size(patches, 1),
    }
    return sizes, _unknown_heads([width])


def _tower(shapes: Shapes, name: str, width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": shapes.size(f"{name}.encoder.layers.0.mlp.fc1.weight"),
        "num_hidden_layers": shapes.count(f"{name}.encoder.layers.{{}}.mlp.fc1.weight"),
        "num_attention_heads": _heads(width),
    }


_INFERENCES: Mapping[str, Callable[[Shapes], Inferred]] = {
    "stage_c": _stage_c,
    "stage_b": _stage_b,
    "stage_a": _stage_a,
    "effnet": _effnet,
    "previewer": _previewer,
    "controlnet": _controlnet,
    "high_res_guide": _high_res_guide,
    "high_res_guides": _high_res_guides,
    "prior": _prior,
    "ip_adapter": _ip_adapter,
    "text_encoder": _text_encoder,
    "image_encoder": _image_encoder,
    "style_descriptor": _style_descriptor,
}
