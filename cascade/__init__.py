"""Stable Cascade as a PyTorch library that does not need ComfyUI.

A map of its rooms, each of which imports only from those above it:

- ``errors``: the errors users see, one class for each case that a caller may handle
- ``files``: writing files completely or not at all
- ``models``: the networks (Stage A, B, C, EfficientNet encoder, previewer, ControlNet) and their sizes
- ``diffusion``: schedules, scalings, targets, noise conditions, loss weights, guidance and samplers
- ``images``: pixels in, pixels out: resizing, edges, masks
- ``conditioning``: text and image embeddings, and the conditions of Stage C and Stage B
- ``checkpoints``: files on disk: what they are, how their names map to ours, loading, saving, converting
- ``adapters``: LoRA in its several forms, learned tokens
- ``editing``: control of attention: prompt to prompt, maps of words, regions
- ``pipelines``: whole jobs: sizes, text to image (C, then B, then A), reconstruction
- ``training``: configuration, data, loop and state, and one file for each kind of training
- ``tiny``: the included tiny cascade: its images, its training and its evaluation
- ``cli``: ``python -m cascade``, one file for each command

Networks take a layer factory (``ops=``) and an attention function (``attention=``); device, dtype and paths are
arguments everywhere; progress goes to a callback. ``tests/test_architecture.py`` checks who may import whom.
"""

from __future__ import annotations

import logging
import re
from importlib import metadata
from pathlib import Path

from .errors import Printable

NAME = "stable-cascade"


def _version() -> str:
    """From the pyproject.toml next to this folder (a checkout, custom_nodes); else that of the installed package."""
    project = Path(__file__).parent.parent / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    if f'\nname = "{NAME}"\n' in text and (found := re.search(r'^version = "(.+)"$', text, re.MULTILINE)):
        return found[1]
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "unknown"


__version__ = _version()
logging.getLogger("cascade").addFilter(Printable())
