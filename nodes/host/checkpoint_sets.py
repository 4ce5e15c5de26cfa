"""Files that belong together: a previewer for a Stage C, and whole cascades."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker

from ...cascade import tiny
from ...cascade.checkpoints import KINDS, inspect_file
from ...cascade.errors import IncompatibleCheckpoint, MissingPart
from ...cascade.pipelines import find_parts
from . import folders
from .autoencoders import DTYPES as VAE_DTYPES
from .autoencoders import load_coder, load_stage_a
from .encoders import load_image_encoder, load_text_encoder
from .files import kinds
from .models import load_stage

logger = logging.getLogger("cascade")

SEARCH = "search my folders"
AUTO, NONE = "auto", "none"
TAKEN = ("stage_c", "stage_b", "text_encoder", "stage_a", "effnet", "previewer", "image_encoder")
"""The kinds of network that Load Checkpoint takes, in the order of its report."""


def previewer(path: Path, file: str, choice: str) -> Path | None:
    """The previewer that was chosen for the network of a file; None for none."""
    if choice == NONE:
        return None
    if choice != AUTO:
        return folders.find("previewer", choice)
    if file == folders.TINY:
        return folders.find("previewer", folders.TINY)
    return path if "previewer" in kinds(path) else _any_previewer()


def coder(path: Path, file: str, choice: str) -> tuple[Path | None, Path | None]:
    """The files of the encoder and of the previewer. Raises IncompatibleCheckpoint where `path` holds neither."""
    found = kinds(path)
    if not {"effnet", "previewer"} & set(found):
        raise IncompatibleCheckpoint(_unwanted(path), path)
    return (path if "effnet" in found else None), previewer(path, file, choice)


def _unwanted(path: Path) -> str:
    found = inspect_file(path)
    return f"this is {found.variant}; it belongs in {found.folder}. Wanted here: EfficientNet encoder or Previewer"


def _any_previewer() -> Path | None:
    """The first previewer in the vae folders."""
    candidates = ((path, path.stat()) for path in folders.model_files("previewer"))
    return next((path for path, stat in candidates if _is_previewer(path, stat.st_mtime_ns, stat.st_size)), None)


@lru_cache(maxsize=1024)
def _is_previewer(path: Path, changed: int, size: int) -> bool:
    """Looked up once for each state of a file."""
    return kinds(path) == ("previewer",)


def fingerprint(kind: str, file: str | None, previewer_choice: str | None = NONE) -> str:
    """Changes when a loader's files do; None for a choice that comes from a link, which may be any.

    Raises MissingPart where a chosen file is not there, which makes ComfyUI ask the loader, who says so.
    """
    if file is None or previewer_choice is None:
        return digest(folders.state([*folders.of_kind(kind), *folders.of_kind("previewer")]))
    path = folders.find(kind, file)
    decoder = previewer(path, file, previewer_choice)
    return digest((folders.stamp(path), decoder and folders.stamp(decoder)))


def fingerprint_of_all(*choices: str | None) -> str:
    """The same for `load`: changes when it would take other files, or one that it takes has changed."""
    known = [choice for choice in choices if choice is not None]
    if len(known) < len(choices):
        return digest(folders.state())
    return digest({kind: folders.stamp(path) for kind, path in _found(known).items()})


def digest(stamps: object) -> str:
    """ComfyUI writes a fingerprint into the images: names of folders have no place there."""
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


def load(checkpoint: str, second_checkpoint: str, dtype: str) -> list[Any]:
    """Stage C, Stage B, CLIP, Stage A, encoder with previewer, CLIP vision, and a report of what was taken.

    A network that was not found blocks the nodes that use it, with a message.
    """
    found = _found((checkpoint, second_checkpoint))
    vae_dtype = dtype if dtype in VAE_DTYPES else "default"
    loaders: dict[str, tuple[Sequence[str], Callable[[], Any]]] = {
        "stage_c": (["stage_c"], lambda: load_stage("stage_c", found["stage_c"], dtype, found.get("previewer"))),
        "stage_b": (["stage_b"], lambda: load_stage("stage_b", found["stage_b"], dtype)),
        "text_encoder": (["text_encoder"], lambda: load_text_encoder(found["text_encoder"], dtype)),
        "stage_a": (["stage_a"], lambda: load_stage_a(found["stage_a"], vae_dtype)),
        "effnet": (["effnet", "previewer"], lambda: load_coder(found.get("effnet"), found.get("previewer"), vae_dtype)),
        "image_encoder": (["image_encoder"], lambda: load_image_encoder(found["image_encoder"])),
    }
    outputs = [
        make() if any(each in found for each in wanted) else ExecutionBlocker(_missing(kind))
        for kind, (wanted, make) in loaders.items()
    ]
    report = _report(found)
    logger.info("%s", report)
    return [*outputs, report]


def _found(choices: Sequence[str]) -> Mapping[str, Path]:
    """kind -> file. Raises MissingPart where there is nothing at all."""
    named = [name for name in choices if name not in (AUTO, SEARCH, folders.TINY)]
    paths = tuple(folders.find_checkpoint(name) for name in named)
    if folders.TINY not in choices:
        paths = (*paths, *folders.model_folders())
        return _search(paths, (folders.state(), *map(folders.stamp, paths[: len(named)]))) or _nothing()
    found = tiny.parts() | find_parts(paths)
    return {kind: path for kind, path in found.items() if path.exists()} or _nothing()


@lru_cache(maxsize=4)
def _search(paths: Sequence[Path], state: object) -> Mapping[str, Path]:
    """Looked for once for each state of the folders: every header is read."""
    return find_parts(paths)


def _nothing() -> Mapping[str, Path]:
    where = ", ".join(str(path) for path in folders.model_folders())
    raise MissingPart(f"There is no network of Stable Cascade in {where}.")


def _missing(kind: str) -> str:
    title, folder = KINDS[kind].title, KINDS[kind].folder
    return f"Load Checkpoint (Stable Cascade) found no {title}: put one into ComfyUI's {folder} folder."


def _report(found: Mapping[str, Path]) -> str:
    return "\n".join(f"{KINDS[kind].title}: {found.get(kind, 'not found')}" for kind in TAKEN)
