"""Errors of all nodes: as artists read them, without the folders of this machine, and one for values no node gives."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ...cascade import errors, tiny

PACKAGE = "stable_cascade"
"""The errors' module as messages call it. The host's name for it is the pack's whole path."""
WIDGETS = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "*"})
TENSORS = frozenset({"IMAGE", "MASK", "SIGMAS"})
"""Types whose values are tensors."""
GROWING = "COMFY_AUTOGROW_V3"
"""The type of a list of inputs that grows; its value is a dict of IMAGEs by name."""
EXPLAINED = frozenset({"CLIP", "CLIP_VISION", "CONTROL_NET"})
"""Types of which a loader may have found none in its file: their nodes say what to do."""


def short_names(nodes: list[type[Any]]) -> list[type[Any]]:
    """The nodes, whose errors now name files without the folders of models, and their classes without this pack's."""
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, errors.CascadeError):
            found.__module__ = PACKAGE
    for node in nodes:
        node.execute = classmethod(_explained(node, node.execute.__func__))
    return nodes


def _explained(node: type[Any], execute: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(execute)
    def explained(cls: type[Any], *args: Any, **inputs: Any) -> Any:
        try:
            _check(node, inputs)
            return execute(cls, *args, **inputs)
        except errors.CascadeError as error:
            error.args = tuple(without_folders(arg) if isinstance(arg, str) else arg for arg in error.args)
            raise

    return explained


def _check(node: type[Any], inputs: dict[str, Any]) -> None:
    """Raises CascadeError where a prompt has an input that the node does not have, or a value where an output of a node
    belongs: the host checks neither."""
    fields = {field.id: field for field in node.GET_SCHEMA().inputs}
    for name, value in inputs.items():
        if name not in fields:
            raise errors.CascadeError(f"This node has no input {errors.shown(name)}: remove it from the prompt.")
        field = fields[name]
        missing = value is None and (field.optional or field.io_type in EXPLAINED)
        if not missing and not _is_an_output(value, field.io_type):
            raise errors.CascadeError(f"{name} is {errors.shown(value)}: connect an output of type {field.io_type}.")


def _is_an_output(value: Any, kind: str) -> bool:
    """Whether a value can be what a node gives as this type; that of a widget, which the host checks, always is."""
    if kind in WIDGETS:
        return True
    if kind in TENSORS:
        return isinstance(value, Tensor)
    if kind == GROWING:
        return isinstance(value, dict) and all(isinstance(each, Tensor) for each in value.values())
    if kind == "LATENT":
        return isinstance(value, dict) and isinstance(value.get("samples"), Tensor)
    if kind == "CONDITIONING":
        return isinstance(value, list) and all(isinstance(entry, (list, tuple)) and len(entry) == 2 for entry in value)
    return value is not None and not isinstance(value, (bool, int, float, str, list, dict))


def without_folders(text: str) -> str:
    """The text with paths in ComfyUI's folders, and those of the included files, relative to these."""
    named = (place for folder in folder_paths.folder_names_and_paths for place in folder_paths.get_folder_paths(folder))
    others = [folder_paths.get_output_directory(), folder_paths.get_input_directory(), tiny.path("stage_c").parent]
    folders = {str(form) for place in (*named, *others) for form in (Path(place), Path(place).resolve())}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder + os.sep, "")
    return text
