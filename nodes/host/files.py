"""From a file to what the host's classes load: a config and a table of tensors."""

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
    """A network's config and its tensors under our names, as they are stored: the file's own bytes, mapped.

    `known` are fields of the config that the artist knows better than the file.
    Raises CheckpointError: another kind of file, broken, or names and shapes that do not fit.
    """
    part = choose(detect_parts(open_tensors(path)), kind)
    config = replace(part.inferred.config, **known) if known else settled_config(part)
    expected = expected_network(part, config)
    return config, dict(read_tensors(part, expected.state_dict(), None, "cpu"))


def kinds(path: Path) -> tuple[str, ...]:
    """The networks in a file; none for one that is not of Stable Cascade."""
    try:
        found = inspect_file(path)
    except (CheckpointError, OSError):
        return ()
    return tuple(part.kind for part in found.parts or (found,))
