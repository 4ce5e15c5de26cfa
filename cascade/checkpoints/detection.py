"""Detecting which networks a file contains: by the names and shapes of its tensors, never by the file's name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch

from ..errors import BrokenCheckpoint, IncompatibleCheckpoint, UnknownCheckpoint
from ..models import Config
from .clip import ClipConfig
from .config_from_shapes import Inferred, infer
from .header import TensorInfo, parsed_json
from .layouts import COMFYUI_PREFIXES, Piece, reading_rules, split_prefixes, to_ours
from .network_kinds import KINDS, blocks_of, variant
from .sources import TensorSource

METADATA_KIND = "cascade.kind"
METADATA_CONFIG = "cascade.config"
"""Keys of the metadata in our own files. A file of several networks has a config for each: cascade.config.KIND."""

INSTRUCT = "instruct"
"""The kind in files of instruct networks, which are a ControlNet and a LoRA: see `adapters.instruct`."""

SCALES = (".scale_weight", ".weight_scale")
"""Endings of the factor by which a layer's float8 or int8 `.weight` must be multiplied."""
SCALE_EXTRAS = (".scale_input", ".input_scale", "scaled_fp8", ".comfy_quant")
"""Other tensors of such files, which are not needed."""


@dataclass(frozen=True)
class Signature:
    """Names by which a kind of network and its layout are recognized, all of them needed; `*` stands for any text."""

    kind: str
    layout: str
    names: tuple[str, ...]

    def fits(self, names: Collection[str]) -> bool:
        return all(_contains(names, name) for name in self.names)


def _contains(names: Collection[str], pattern: str) -> bool:
    return pattern in names or ("*" in pattern and any(fnmatchcase(name, pattern) for name in names))


SIGNATURES = (
    Signature("stage_c", "diffusers", ("clip_txt_mapper.weight", "clf.1.weight", "*.attention.to_out.0.weight")),
    Signature("stage_c", "released", ("clip_txt_mapper.weight", "clf.1.weight")),
    Signature("stage_b", "diffusers", ("effnet_mapper.0.weight", "clf.1.weight", "clip_txt_pooled_mapper.weight")),
    Signature("stage_b", "released", ("clip_mapper.weight", "clf.1.weight")),
    Signature("stage_a", "diffusers", ("in_block.1.weight", "vquantizer.embedding.weight")),
    Signature("stage_a", "released", ("in_block.1.weight", "vquantizer.codebook.weight")),
    Signature("controlnet", "released", ("projections.0.0.weight", "projections.0.2.weight", "backbone.*")),
    Signature("effnet", "released", ("backbone.0.0.weight", "mapper.0.weight")),
    Signature("previewer", "released", ("blocks.0.weight", "blocks.2.running_mean", "blocks.24.weight")),
    Signature("high_res_guide", "released", ("wtokens", "base_params.wb0", "hr_norm.mapping.mapper.weight")),
    Signature(
        "high_res_guides", "released", ("*.0.wtokens", "*.0.base_params.wb0", "*.0.hr_norm.mapping.mapper.weight")
    ),
    Signature("prior", "released", ("text_mapper.weight", "pooled_mapper.weight", "blocks.0.2.kv_mapper.1.weight")),
    Signature("ip_adapter", "released", ("queries", "to_k.0.weight", "to_v.0.weight", "mapper.weight")),
    Signature("text_encoder", "released", ("text_model.embeddings.token_embedding.weight", "text_projection.weight")),
    Signature("text_encoder", "comfyui", ("transformer.text_model.embeddings.token_embedding.weight",)),
    Signature("style_descriptor", "released", ("vision_model.embeddings.patch_embedding.weight", "style", "content")),
    Signature("style_descriptor", "released", ("*backbone.conv1.weight", "*last_layer_style", "*last_layer_content")),
    Signature(
        "image_encoder", "released", ("vision_model.embeddings.patch_embedding.weight", "visual_projection.weight")
    ),
)

FOREIGN: Sequence[tuple[str, tuple[str, ...]]] = (
    ("an instruct network, which edits images by instructions", ("controlnet.projections.0.0.weight", "*lora_down*")),
    ("a LoRA, which is applied to a network, not loaded as one", ("*lora_down*",)),
    ("a LoRA, which is applied to a network, not loaded as one", ("*lora_A*",)),
    ("a LoRA, which is applied to a network, not loaded as one", ("weights.0.lora_up",)),
    ("an IP-Adapter of Stable Diffusion or another model", ("*.to_k_ip.weight", "image_proj.*")),
    ("a learned token's embedding", ("clip_g",)),
    ("an SDXL ControlNet", ("*input_hint_block.0.weight", "*label_emb.0.0.weight")),
    ("an SDXL ControlNet", ("controlnet_cond_embedding.conv_in.weight", "add_embedding.linear_1.weight")),
    ("a Stable Diffusion ControlNet", ("*input_hint_block.0.weight",)),
    ("a Stable Diffusion ControlNet", ("controlnet_cond_embedding.conv_in.weight",)),
    ("a T2I adapter of Stable Diffusion", ("*body.0.block1.weight",)),
    ("a T2I adapter of Stable Diffusion", ("*body.0.in_conv.weight",)),
    ("a T2I adapter of Stable Diffusion", ("adapter.body.0.*",)),
    ("a Flux checkpoint", ("*double_blocks.0.img_attn.norm.key_norm.scale",)),
    ("a Stable Diffusion 3 checkpoint", ("*joint_blocks.0.context_block.attn.qkv.weight",)),
    ("an SDXL checkpoint", ("*input_blocks.0.0.weight", "*conditioner.embedders.1.*")),
    ("an SDXL checkpoint", ("*label_emb.0.0.weight", "*input_blocks.8.1.transformer_blocks.9.*")),
    ("a Stable Diffusion 2 checkpoint", ("*input_blocks.0.0.weight", "cond_stage_model.model.*")),
    ("a Stable Diffusion 1.5 checkpoint", ("*input_blocks.0.0.weight", "cond_stage_model.transformer.*")),
    ("a Stable Diffusion UNet", ("*input_blocks.0.0.weight", "*middle_block.1.transformer_blocks.0.*")),
    ("a Stable Diffusion UNet in the layout of diffusers", ("conv_in.weight", "*up_blocks.1.attentions.0.*")),
    ("a Stable Diffusion VAE", ("*decoder.conv_in.weight", "*encoder.conv_in.weight")),
    ("a style descriptor whose content head is not that of CSD's released one", ("*last_layer_content.fc.weight",)),
    ("a T5 text encoder", ("*encoder.block.0.layer.0.SelfAttention.k.weight",)),
    ("a CLIP text encoder without the projection that Stable Cascade needs", ("*text_model.embeddings.*",)),
    ("a CLIP text encoder of another layout (open_clip)", ("*token_embedding.weight", "*transformer.resblocks.*")),
)
"""Files of other models, and the names by which they are recognized, all of them needed; `*` as in `Signature`."""


@dataclass(frozen=True)
class Part:
    """One network in a source. Its tensors are not read yet.

    Attributes:
        source: contains its tensors.
        kind: of the network.
        layout: of the names: released, diffusers, comfyui.
        start: prefix of its names in a file of several networks.
        tensors: by name without the prefix, without the factors and extras of float8 storage.
        scales: name -> name of the factor for its float8 values.
    """

    source: TensorSource
    kind: str
    layout: str
    start: str
    tensors: Mapping[str, TensorInfo]
    scales: Mapping[str, str]

    @property
    def merged(self) -> bool:
        return bool(self.start)

    @cached_property
    def pieces(self) -> dict[str, Piece]:
        """Our name -> its place in the file.

        Raises:
            IncompatibleCheckpoint: two of the file's names mean the same tensor.
        """
        try:
            return to_ours(self.tensors, reading_rules(self.layout, self.kind, self.tensors))
        except ValueError as error:
            raise IncompatibleCheckpoint(f"{KINDS[self.kind].title}: {error}", self.source.path) from error

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our name -> shape. Raises IncompatibleCheckpoint if a fused tensor cannot be split."""
        try:
            return {name: _shape(self.tensors[piece.name].shape, piece) for name, piece in self.pieces.items()}
        except ValueError as error:
            raise IncompatibleCheckpoint(f"{KINDS[self.kind].title}: {error}", self.source.path) from error

    @property
    def wrong_scales(self) -> list[str]:
        """Factors that are neither one number nor one for each row of their matrix."""
        return [
            scale
            for name, scale in self.scales.items()
            if math.prod(self.source.tensors[scale].shape) not in (1, *self.tensors[name].shape[:1])
        ]

    @cached_property
    def inferred(self) -> Inferred:
        """Its config: from our metadata, else from names and shapes, completed by config.json if there is one.

        Raises:
            IncompatibleCheckpoint: no network of this kind has such tensors.
            BrokenCheckpoint: the config in the metadata is not valid.
        """
        metadata = self.source.metadata
        declared = metadata.get(f"{METADATA_CONFIG}.{self.kind}")
        if metadata.get(METADATA_KIND) == self.kind and not self.merged:
            declared = metadata.get(METADATA_CONFIG, "")
        if declared is not None:
            return Inferred(self._declared(declared))
        try:
            found = infer(self.kind, self.shapes)
            return found if self.source.config is None else _completed(self.kind, found, self.source.config)
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise IncompatibleCheckpoint(
                f"not a supported kind of {KINDS[self.kind].title}: {error}", self.source.path
            ) from error

    def _declared(self, text: str) -> Config:
        try:
            data = parsed_json(text)
            if not isinstance(data, dict) or blocks_of(data) > len(self.tensors):
                raise ValueError("it describes more blocks than the file has tensors")
            return KINDS[self.kind].config.from_dict(data)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError) as error:
            raise BrokenCheckpoint(
                f"its metadata does not describe a {KINDS[self.kind].title}: {error}", self.source.path
            ) from error

    @cached_property
    def parameters(self) -> int:
        """Number of trainable values, without statistics of batch norms."""
        return sum(
            torch.Size(shape).numel()
            for name, shape in self.shapes.items()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """Names of its tensors' floating types, the one with the most values first."""
        counts: dict[str, int] = {}
        for info in self.tensors.values():
            if info.dtype.is_floating_point or len(info.shape) > 1:
                name = str(info.dtype).removeprefix("torch.")
                counts[name] = counts.get(name, 0) + torch.Size(info.shape).numel()
        return tuple(sorted(counts, key=lambda name: -counts[name]))

    def describe(self) -> str:
        """For messages: "Stage B, 700M, bfloat16"."""
        return ", ".join((variant(self.kind, self.inferred.config), " and ".join(self.dtypes[:2])))


def _shape(shape: tuple[int, ...], piece: Piece) -> tuple[int, ...]:
    if piece.transposed:
        return shape[::-1]
    if piece.count == 1:
        return shape
    if not shape or shape[0] % piece.count:
        raise ValueError(f"{piece.name} has the shape {list(shape)}, which cannot be split into {piece.count} parts")
    return (shape[0] // piece.count, *shape[1:])


def _completed(kind: str, found: Inferred, foreign: Mapping[str, Any]) -> Inferred:
    """An inferred config, completed by fields of a config.json of diffusers or transformers."""
    if isinstance(found.config, ClipConfig):
        known = type(found.config).from_transformers(dict(foreign))
        return Inferred(known) if _same_size(known, found.config) else found
    data = found.config.to_dict()
    heads = foreign.get("num_attention_heads")
    if kind in ("stage_b", "stage_c") and isinstance(heads, list) and len(heads) == len(data["levels"]):
        data["levels"] = [level | {"heads": h if level["heads"] else 0} for level, h in zip(data["levels"], heads)]
        if kind == "stage_c" and isinstance(foreign.get("switch_level"), list):
            data["switch_level"] = foreign["switch_level"]
    elif kind == "stage_a" and isinstance(foreign.get("scale_factor"), float):
        data["scale_factor"] = foreign["scale_factor"]
    else:
        return found
    return Inferred(type(found.config).from_dict(data))


def _same_size(one: ClipConfig, other: ClipConfig) -> bool:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "projection_dim")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def detect_parts(sources: Mapping[str, TensorSource]) -> list[Part]:
    """The networks of Stable Cascade in these sources, at least one, in the order of `KINDS`.

    Raises:
        UnknownCheckpoint: there is none.
    """
    parts = [part for source in sources.values() for part in _parts(source)]
    parts.sort(key=lambda part: list(KINDS).index(part.kind))
    if not parts:
        source = next(iter(sources.values()), None)
        path = source.path if source else None
        raise UnknownCheckpoint(_what_else(list(source.tensors) if source else []), path)
    return parts


def _parts(source: TensorSource) -> list[Part]:
    whole = _part(source, list(source.tensors), "")
    if whole is not None:
        return [whole]
    found = []
    for start, names in split_prefixes(source.tensors).items():
        part = _part(source, names, start) if start else None
        if part is not None and part.kind in COMFYUI_PREFIXES[start]:
            found.append(part)
    return found


def _part(source: TensorSource, names: Sequence[str], start: str) -> Part | None:
    tensors = {name[len(start) :]: source.tensors[name] for name in names}
    signature = next((signature for signature in SIGNATURES if signature.fits(tensors)), None)
    if signature is None or (signature.layout == "comfyui" and not start):
        return None
    layout = signature.layout
    if layout == "released":
        layout = "comfyui" if start else "diffusers" if source.config is not None else "released"
    scales = {
        f"{name.removesuffix(ending)}.weight": start + name
        for name in tensors
        for ending in SCALES
        if name.endswith(ending) and f"{name.removesuffix(ending)}.weight" in tensors
    }
    unread = {name[len(start) :] for name in scales.values()}
    kept = {name: info for name, info in tensors.items() if name not in unread and not name.endswith(SCALE_EXTRAS)}
    return Part(source, signature.kind, layout, start, kept, scales)


def _what_else(names: list[str]) -> str:
    if not names:
        return "it contains no tensors"
    known = set(names)
    for title, patterns in FOREIGN:
        if all(_contains(known, pattern) for pattern in patterns):
            return f"this is {title}"
    return f"no part of Stable Cascade ({len(names)} tensors, the first {', '.join(names[:3])})"


def choose(parts: Sequence[Part], wanted: str | None) -> Part:
    """The part of the wanted kind, or the only one if `wanted` is None.

    Raises:
        ValueError: an unknown kind.
        IncompatibleCheckpoint: there is no part of that kind, or there are several and `wanted` is None.
    """
    path = parts[0].source.path
    if wanted is not None and wanted not in KINDS:
        raise ValueError(f"part must be one of {', '.join(KINDS)}, not {wanted!r}")
    fitting = [part for part in parts if wanted in (None, part.kind)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(part.kind for part in fitting)
        raise IncompatibleCheckpoint(f"this contains several networks: choose one with part= ({names})", path)
    found = " and ".join(part.describe() for part in parts)
    title = KINDS[wanted].title if wanted else "something else"
    raise IncompatibleCheckpoint(f"this is {found}; it belongs in {folder(parts)}. Wanted here: {title}", path)


def folder(parts: Sequence[Part]) -> str:
    """The folder under ComfyUI's models folder where such a file belongs."""
    folders = {KINDS[part.kind].folder for part in parts}
    return "checkpoints" if len(folders) > 1 else folders.pop()
