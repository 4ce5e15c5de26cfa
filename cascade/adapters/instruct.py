"""Instruct networks: what lets a Stage C follow instructions ("make it green") about an image that it is shown.

A ControlNet reads the image's latents, and a LoRA changes Stage C, so that it takes the prompt as an instruction (after
Brooks et al. 2023, "InstructPix2Pix"). The two are trained together and lie in one file: the ControlNet's tensors under
`controlnet.`, the LoRA's as in our own format.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checkpoints import load_model
from ..checkpoints.detection import INSTRUCT, METADATA_CONFIG, METADATA_KIND, detect_parts
from ..checkpoints.inspection import instruct_config
from ..checkpoints.saving import save_tensors
from ..checkpoints.sources import open_tensors
from ..errors import CheckpointError, UnknownCheckpoint
from ..models import ControlNet
from .lora import Lora
from .reading import METADATA, read_lora
from .writing import metadata_of, to_tensors

CONTROL = "controlnet."
"""Start of the names of the ControlNet's tensors."""
FORMAT = "cascade"
"""Of the LoRA's."""


@dataclass(frozen=True)
class InstructNetwork:
    """net: reads the image's latents [B, 16, h, w]. lora: of Stage C."""

    net: ControlNet
    lora: Lora


def read_instruct(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> InstructNetwork:
    """The instruct network in a file.

    Raises:
        FileNotFoundError: nothing is there.
        BrokenCheckpoint: damaged, or with NaN or infinity.
        UnknownCheckpoint: no instruct network; the message says what it is, if that is known.
        IncompatibleCheckpoint: its tensors do not fit together.
    """
    sources = open_tensors(path)
    source = next(iter(sources.values()))
    if len(sources) != 1 or source.metadata.get(METADATA_KIND) != INSTRUCT:
        found = " and ".join(part.describe() for part in detect_parts(sources))
        raise UnknownCheckpoint(f"this is {found}, not an instruct network", path)
    with source.reader() as get:
        tensors = {name: get(name) for name in source.tensors}
    control = {name.removeprefix(CONTROL): tensors.pop(name) for name in list(tensors) if name.startswith(CONTROL)}
    config = instruct_config(source)
    try:
        net = load_model(control, part="controlnet", config=config, dtype=dtype, check_finite=True)
        return InstructNetwork(net, replace(read_lora(tensors), path=os.fspath(path)))
    except CheckpointError as error:
        # Of tensors in memory, which have no path.
        raise type(error)(str(error), path) from error


def save_instruct(network: InstructNetwork, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Write an instruct network as one safetensors file, atomically.

    dtype: of its tensors; None keeps theirs. Raises OSError; an existing file is unchanged then.
    """
    described = metadata_of(network.lora, FORMAT)[METADATA]
    config = json.dumps(network.net.config.to_dict())
    metadata = {"format": "pt", METADATA_KIND: INSTRUCT, METADATA_CONFIG: config, METADATA: described}
    control = {f"{CONTROL}{name}": tensor for name, tensor in network.net.state_dict().items()}
    tensors = {**control, **to_tensors(network.lora, FORMAT)}
    save_tensors({name: _stored(tensor, dtype) for name, tensor in tensors.items()}, path, metadata)


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # An alpha is a setting, kept as it is.
    changed = dtype is not None and tensor.is_floating_point() and tensor.dim()
    return (tensor.to(dtype) if changed else tensor).contiguous()
