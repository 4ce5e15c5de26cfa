"""Checkpoints on disk: detecting what they are, mapping their names to ours, loading, saving, converting.

`load_model` returns the network of any file of Stable Cascade. `layouts` has the names of each format as data,
`detection` finds out what a file is, `config_from_shapes` a network's size.
"""

from .clip import ClipTextConfig, ClipVisionConfig
from .descriptor import StyleDescriptor, StyleDescriptorConfig
from .inspection import Inspection, inspect_file
from .loading import load_model
from .network_kinds import KINDS, config_of, kind_of
from .saving import convert, save_model

__all__ = [
    "KINDS",
    "ClipTextConfig",
    "ClipVisionConfig",
    "Inspection",
    "StyleDescriptor",
    "StyleDescriptorConfig",
    "config_of",
    "convert",
    "inspect_file",
    "kind_of",
    "load_model",
    "save_model",
]
