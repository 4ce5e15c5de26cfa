"""Inspecting a file by its header, without reading tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..errors import BrokenCheckpoint
from ..models import ControlNetConfig
from .detection import INSTRUCT, METADATA_CONFIG, METADATA_KIND, Part, detect_parts, folder
from .header import parsed_json
from .network_kinds import KINDS, variant
from .sources import TensorSource, open_tensors

LAYOUT_TITLES = {
    "cascade": "single file of ours",
    "released": "single file",
    "diffusers": "diffusers folder",
    "comfyui": "ComfyUI checkpoint",
}


@dataclass(frozen=True)
class Inspection:
    """What a file contains.

    Attributes:
        path: as given; "" for a state dict.
        kind: the network (stage_c, ...), or "checkpoint" for several in one.
        variant: for messages: "Stage B, 700M".
        layout: cascade (ours), released, comfyui or diffusers.
        dtype: the stored floating types, most common first: "bfloat16 and float32".
        parameters: number of trainable values.
        folder: where it belongs under ComfyUI's models folder.
        config: as plain data; None for several networks.
        uncertain: fields of the config that neither metadata nor names and shapes determine.
        parts: the networks of a file that contains several.
    """

    path: str
    kind: str
    variant: str
    layout: str
    dtype: str
    parameters: int
    folder: str
    config: Mapping[str, Any] | None
    uncertain: tuple[str, ...] = ()
    parts: tuple[Inspection, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def inspect_file(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> Inspection:
    """Look at a file, a folder or a state dict.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: as `load_model`, except for problems in the tensors' values.
    """
    path = "" if isinstance(source, Mapping) else os.fspath(source)
    sources = open_tensors(source)
    for each in sources.values():
        if each.metadata.get(METADATA_KIND) == INSTRUCT:
            return _instruct(path, each)
    parts = detect_parts(sources)
    found = tuple(_inspected(path, part) for part in parts)
    return found[0] if len(found) == 1 else _merged(path, parts, found)


def _inspected(path: str, part: Part) -> Inspection:
    inferred = part.inferred
    ours = METADATA_KIND in part.source.metadata and not part.merged
    return Inspection(
        path=path,
        kind=part.kind,
        variant=variant(part.kind, inferred.config),
        layout="cascade" if ours else part.layout,
        dtype=" and ".join(part.dtypes),
        parameters=part.parameters,
        folder=folder([part]),
        config=inferred.config.to_dict(),
        uncertain=tuple(dict.fromkeys((*inferred.guessed, *inferred.unknown))),
    )


def instruct_config(source: TensorSource) -> ControlNetConfig:
    """The config of an instruct network's ControlNet. Raises BrokenCheckpoint."""
    try:
        return ControlNetConfig.from_dict(parsed_json(source.metadata.get(METADATA_CONFIG, "")))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise BrokenCheckpoint(f"its metadata does not describe an instruct network: {error}", source.path) from error


def _instruct(path: str, source: TensorSource) -> Inspection:
    """An instruct network, of which the ControlNet's part has a config."""
    config = instruct_config(source)
    dtypes = dict.fromkeys(str(info.dtype).removeprefix("torch.") for info in source.tensors.values() if info.shape)
    return Inspection(
        path=path,
        kind=INSTRUCT,
        variant=f"Instruct network, for a Stage C of width {config.width}",
        layout="cascade",
        dtype=" and ".join(dtypes),
        parameters=sum(math.prod(info.shape) for info in source.tensors.values()),
        folder=KINDS["controlnet"].folder,
        config=config.to_dict(),
    )


def _merged(path: str, parts: Sequence[Part], found: tuple[Inspection, ...]) -> Inspection:
    dtypes = dict.fromkeys(name for part in parts for name in part.dtypes)
    return Inspection(
        path=path,
        kind="checkpoint",
        variant=" + ".join(each.variant for each in found),
        layout=found[0].layout,
        dtype=" and ".join(dtypes),
        parameters=sum(each.parameters for each in found),
        folder=folder(parts),
        config=None,
        parts=found,
    )
