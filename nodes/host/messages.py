"""Error messages as artists read them: without the folders of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import folder_paths

from ...cascade import errors, tiny

PACKAGE = "stable_cascade"
"""The errors' module as messages call it. The host's name for it is the pack's whole path."""


def short_names(nodes: list[type[Any]]) -> list[type[Any]]:
    """The nodes, whose errors now name files without the folders of models, and their classes without this pack's."""
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, errors.CascadeError):
            found.__module__ = PACKAGE
    for node in nodes:
        node.execute = classmethod(_explained(node.execute.__func__))
    return nodes


def _explained(execute: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(execute)
    def explained(cls: type[Any], *args: Any, **inputs: Any) -> Any:
        try:
            return execute(cls, *args, **inputs)
        except errors.CascadeError as error:
            error.args = tuple(without_folders(arg) if isinstance(arg, str) else arg for arg in error.args)
            raise

    return explained


def without_folders(text: str) -> str:
    """The text with paths in ComfyUI's folders, and those of the included files, relative to these."""
    named = (place for folder in folder_paths.folder_names_and_paths for place in folder_paths.get_folder_paths(folder))
    others = [folder_paths.get_output_directory(), folder_paths.get_input_directory(), tiny.path("stage_c").parent]
    folders = {str(form) for place in (*named, *others) for form in (Path(place), Path(place).resolve())}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder + os.sep, "")
    return text
