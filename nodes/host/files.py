"""Reading a network's file for the host's classes, which load a config and a state dict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cascade.checkpoints import inspect_file
from ...cascade.checkpoints.detection import Part, choose, detect_parts
from ...cascade.checkpoints.loading import expected_network, read_tensors, settled_config
from ...cascade.checkpoints.quantizing import QUANTIZATIONS, SCALE, formats_of
from ...cascade.checkpoints.sources import open_tensors
from ...cascade.errors import CheckpointError
from .compat import native_formats

QUANTIZED = ".comfy_quant"
"""Ending of the host's name for the format of a quantized layer."""


def read(path: Path, kind: str, quantized: bool = False, **known: Any) -> tuple[Any, dict[str, Tensor]]:
    """A network's config and its tensors under our names, in their stored types and mapped from the file.

    Args:
        kind: the network to read.
        quantized: leave layers in the formats that the host has kernels for as they are, with the host's names for
            their factors and formats.
        known: fields of the config that replace those of the file.

    Raises:
        CheckpointError: not a file of this kind, broken, or names or shapes do not fit.
    """
    part = choose(detect_parts(open_tensors(path)), kind)
    config = replace(part.inferred.config, **known) if known else settled_config(part)
    expected = expected_network(part, config)
    native = _native(part) if quantized else {}
    if native:
        others = {name: info for name, info in part.tensors.items() if name.removesuffix(".weight") not in native}
        part = replace(part, tensors=others)
    state = dict(read_tensors(part, expected.state_dict(), None, "cpu"))
    with part.source.reader() as get:
        for layer, name in native.items():
            weight = f"{layer}.weight"
            state[weight], state[layer + SCALE] = get(weight), get(part.scales[weight])
            state[layer + QUANTIZED] = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    return config, state


def _native(part: Part) -> dict[str, str]:
    """Layer -> format, of the layers of a part that the host computes with as they are stored."""
    if part.start:
        return {}
    dtypes = {each.name: each.dtype for each in QUANTIZATIONS.values() if each.name in native_formats()}
    found = {}
    for layer, name in formats_of(part.source.metadata).items():
        weight = part.tensors.get(f"{layer}.weight")
        factor = part.scales.get(f"{layer}.weight")
        one = factor is not None and not part.source.tensors[factor].shape
        if weight is not None and one and weight.dtype == dtypes.get(name):
            found[layer] = name
    return found


def kinds(path: Path) -> tuple[str, ...]:
    """The kinds of the networks in a file; empty if it is not of Stable Cascade or not readable."""
    try:
        found = inspect_file(path)
    except (CheckpointError, OSError):
        return ()
    return tuple(part.kind for part in found.parts or (found,))
