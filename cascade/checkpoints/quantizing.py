"""Quantized weights: matrices of one byte a number, each with one factor, in the layout that ComfyUI's kernels read.

A layer `name` has `name.weight` (float8 or int8) and `name.weight_scale` (float32, one number); the file's metadata say
which layers these are, and in which format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .header import parsed_json

METADATA = "_quantization_metadata"
"""ComfyUI's key of the file's metadata."""
SCALE = ".weight_scale"
KINDS = ("stage_c", "stage_b")
TOLERANT = (".channelwise.", ".attention.attn.", ".kv_mapper.")
"""Parts of the names of the layers that are quantized: nearly all of the weights. What remains in its type reads values
without a norm (see `models.blocks`), or is small."""


@dataclass(frozen=True)
class Quantization:
    """A format.

    name: ComfyUI's. dtype: of the stored numbers. largest: of them.
    """

    name: str
    dtype: torch.dtype
    largest: float

    def scale(self, weight: Tensor) -> Tensor:
        """The factor [] of a weight, float32."""
        return (weight.abs().max().float() / self.largest).clamp_min(1e-12)

    def quantized(self, weight: Tensor) -> Tensor:
        """The numbers to store."""
        divided = weight.float() / self.scale(weight)
        if not self.dtype.is_floating_point:
            divided = divided.round()
        return divided.clamp(-self.largest, self.largest).to(self.dtype)


QUANTIZATIONS: Mapping[str, Quantization] = {
    "fp8_scaled": Quantization("float8_e4m3fn", torch.float8_e4m3fn, 448.0),
    "int8": Quantization("int8_tensorwise", torch.int8, 127.0),
}


def is_tolerant(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of ours is quantized."""
    return name.endswith(".weight") and len(shape) == 2 and any(part in name for part in TOLERANT)


def metadata_of(layers: list[str], quantization: Quantization) -> dict[str, str]:
    """The metadata of a file with these quantized layers."""
    found = {"format_version": "1.0", "layers": {layer: {"format": quantization.name} for layer in layers}}
    return {METADATA: json.dumps(found)}


def formats_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Layer -> ComfyUI's name of its format, of a file's metadata; what cannot be read counts as nothing."""
    try:
        layers = parsed_json(metadata.get(METADATA, "{}"))["layers"]
        return {layer: conf["format"] for layer, conf in layers.items() if isinstance(conf["format"], str)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
