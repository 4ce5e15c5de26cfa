"""Checkpoints on disk: what they are, how their names map to ours, loading, saving, converting.

`load_model` takes any file of Stable Cascade and gives its network. `layouts` holds the names of each format as data,
`detection` tells what a file is, `configs` a network's size from its shapes.
"""

from .clip import ClipTextConfig, ClipVisionConfig
from .inspection import Inspection, inspect_file
from .loading import load_model
from .network_kinds import KINDS, config_of, kind_of
from .saving import convert, save_model

__all__ = [
    "KINDS",
    "ClipTextConfig",
    "ClipVisionConfig",
    "Inspection",
    "config_of",
    "convert",
    "inspect_file",
    "kind_of",
    "load_model",
    "save_model",
]
