"""Finds the networks of a Stable Cascade in folders, by the content of the files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import Inspection, inspect_file
from ..errors import CheckpointError, UnknownCheckpoint

logger = logging.getLogger("cascade")

ORDER = ("stage_c", "stage_b", "stage_a", "text_encoder", "image_encoder", "effnet", "previewer")
FITS = {
    "stage_b": (("clip", "stage_c", "clip_text_pooled"),),
    "text_encoder": (("hidden_size", "stage_c", "clip_text"), ("projection_dim", "stage_c", "clip_text_pooled")),
    "image_encoder": (("projection_dim", "stage_c", "clip_img"),),
}
"""kind -> (its size, a kind chosen before it, the size there that must be equal)."""


@dataclass(frozen=True)
class _Found:
    place: int
    path: Path
    network: Inspection

    @property
    def rank(self) -> tuple[int, int, int]:
        """The path that was named first, then the larger network, then the smaller file."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        return -self.place, self.network.parameters, -size


def find_parts(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """kind -> file or diffusers folder, from files and folders (searched with all that is in them).

    Of several networks of a kind it takes the largest in the path that was named first. Networks that do not fit
    together (a text encoder of another width) are left out. In folders only .safetensors files are read, and files that
    are broken or not of Stable Cascade are skipped; a file that is named must be one.

    Raises FileNotFoundError for a missing path, CheckpointError for a named file without a network of Stable Cascade.
    """
    found = [each for place, path in enumerate(paths) for each in _look(place, Path(path))]
    chosen: dict[str, _Found] = {}
    for kind in ORDER:
        fitting = [each for each in found if each.network.kind == kind and _fits(each.network, chosen)]
        if fitting:
            chosen[kind] = max(fitting, key=lambda each: each.rank)
    return {kind: each.path for kind, each in chosen.items()}


def _fits(network: Inspection, chosen: Mapping[str, _Found]) -> bool:
    own = network.config or {}
    return all(
        own.get(name) == (chosen[other].network.config or {}).get(size)
        for name, other, size in FITS.get(network.kind, ())
        if other in chosen
    )


def _look(place: int, path: Path) -> Iterator[_Found]:
    if not path.is_dir():
        yield from _networks(place, path)
        return
    for candidate in _candidates(path):
        try:
            yield from _networks(place, candidate)
        except UnknownCheckpoint as error:
            logger.debug("passed over: %s", error)
        except (CheckpointError, OSError) as error:
            logger.warning("passed over: %s", error)


def _networks(place: int, path: Path) -> Iterator[_Found]:
    inspection = inspect_file(path)
    for network in inspection.parts or (inspection,):
        yield _Found(place, path, network)


def _candidates(folder: Path) -> Iterator[Path]:
    """Folders with a config.json (diffusers), and every other .safetensors file."""
    for where, folders, files in os.walk(folder, followlinks=True):
        weights = [name for name in sorted(files) if name.endswith(".safetensors")]
        if "config.json" in files and weights:
            yield Path(where)
        else:
            yield from (Path(where, name) for name in weights)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
