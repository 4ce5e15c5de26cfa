"""Reading a network's file for the host's classes, which load a config and a state dict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...cascade.checkpoints import inspect_file
from ...cascade.checkpoints.detection import choose, detect_parts
from ...cascade.checkpoints.loading import expected_network, read_tensors, settled_config
from ...cascade.checkpoints.sources import open_tensors
from ...cascade.errors import CheckpointError


def read(path: Path, kind: str, **known: Any) -> tuple[Any, dict[str, Tensor]]:
    """A network's config and its tensors under our names, in their stored types and mapped from the file.

    Args:
        kind: the network to read.
        known: fields of the config that replace those of the file.

    Raises:
        CheckpointError: not a file of this kind, broken, or names or shapes do not fit.
    """
    part = choose(detect_parts(open_tensors(path)), kind)
    config = replace(part.inferred.config, **known) if known else settled_config(part)
    expected = expected_network(part, config)
    return config, dict(read_tensors(part, expected.state_dict(), None, "cpu"))


def kinds(path: Path) -> tuple[str, ...]:
    """The kinds of the networks in a file; empty if it is not of Stable Cascade or not readable."""
    try:
        found = inspect_file(path)
    except (CheckpointError, OSError):
        return ()
    return tuple(part.kind for part in found.parts or (found,))
