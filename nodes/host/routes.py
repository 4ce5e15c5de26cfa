"""The page's question about a file that was chosen in a loader: what it is, and the memory it will take.

A request names a choice of a loader, never a path: only files that ComfyUI lists in its model folders
are opened.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Any

import server
from aiohttp import web

from ...cascade.checkpoints import inspect_file
from ...cascade.checkpoints.inspection import Inspection
from ...cascade.errors import CascadeError, MissingPart
from . import folders, memory

INSPECT = "/stable_cascade/inspect"
CHECKPOINT = "checkpoint"
"""The kind of the loader that accepts every network."""
CONTROLNET = "controlnet"

LOOKED_INTO = (".safetensors", ".sft")
"""Files with a header that describes them; others would have to be read completely."""

SUITABLE = {"effnet": {"effnet", "previewer"}}
"""kind of loader -> kinds of network that it takes, where it accepts more than its own."""


def register() -> None:
    """Add the route to ComfyUI's server; nothing where there is none, as in tests that run prompts in process."""
    running = getattr(server.PromptServer, "instance", None)
    if running is not None:
        running.routes.get(INSPECT)(inspect)


async def inspect(request: web.Request) -> web.Response:
    """`?kind=stage_c&file=NAME&weight_dtype=bf16` -> what it is, as JSON; 404 for what is no choice of that loader."""
    asked = (request.query.get(name, "") for name in ("kind", "file", "weight_dtype"))
    # Listing folders and reading headers may wait for a disk.
    answer = await asyncio.to_thread(describe, *asked)
    if answer is None:
        return web.json_response({"problem": "This file is not in ComfyUI's model folders."}, status=404)
    return web.json_response(answer)


def describe(kind: str, choice: str, weight_dtype: str = "default") -> dict[str, Any] | None:
    """What the page shows of a choice of the loaders of this kind; None for what is no choice of theirs."""
    try:
        path = _chosen(kind, choice)
        if path is None:
            return None
        stat = path.stat()
        found = _inspected(path, stat.st_mtime_ns, stat.st_size)
    except MissingPart:
        return {"problem": "The file is not there any more."}
    except OSError as problem:
        return {"problem": f"It cannot be read: {problem.strerror}."}
    if isinstance(found, str):
        return {"problem": found}
    networks = found.parts or (found,)
    loaded = networks if kind == CHECKPOINT else [part for part in networks if part.kind in SUITABLE.get(kind, {kind})]
    return {
        "variant": found.variant,
        "kinds": [part.kind for part in networks],
        "layout": found.layout,
        "dtype": found.dtype,
        "parameters": found.parameters,
        "bytes": stat.st_size if path.is_file() else None,
        "folder": found.folder,
        "fits": bool(loaded),
        "memory": sum(memory.weights(part, weight_dtype) for part in loaded),
    }


def _chosen(kind: str, choice: str) -> Path | None:
    """The path of a choice. Raises MissingPart where it is no longer there."""
    if kind == CHECKPOINT:
        return folders.find_checkpoint(choice) if choice in folders.checkpoint_choices() else None
    if kind == CONTROLNET:
        return folders.find_controlnet(choice) if choice in folders.controlnet_choices() else None
    if kind in folders.FOLDERS and choice in folders.choices(kind):
        return folders.find(kind, choice)
    return None


@lru_cache(maxsize=256)
def _inspected(path: Path, changed: int, size: int) -> Inspection | str:
    """Read once for each state of a file; text says why it cannot be told. It names no folder of this machine."""
    if path.is_file() and path.suffix not in LOOKED_INTO:
        return f"A {path.suffix} file is recognized only when it is loaded."
    try:
        return inspect_file(path)
    except CascadeError as problem:
        return str(problem).removeprefix(f"{path}: ").replace(f"{path.parent}", "")
