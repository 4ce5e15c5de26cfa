"""The tiny cascade: a whole Stable Cascade of a few megabytes that ships with the pack.

Here lie its weights and its card, what it was trained on (`grammar`, `drawing`), and how its images are judged
(`analysis`, `evaluation`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..adapters import Applied

_ADAPTERS = {"lora": "lora_heart", "embedding": "lora_heart"}
"""What is not a network: a LoRA with the learned token `[heart]`."""
TURBO = ("turbo_stage_c", "turbo_stage_b")
"""LoRAs with which Stage C needs 4 steps and Stage B 2, at cfg 1 (the preset turbo)."""
_PARTS = ("text_encoder", "image_encoder", "effnet", "stage_c", "stage_b", "stage_a", "previewer")

GUIDES = "high_res_guides"
"""For 512 x 512 and 768 x 768 pixels, after a first pass of 256."""
PRIOR = "prior"
"""Turns a prompt into the embedding of an image."""
SKETCH = "t2i_sketch"
"""A T2I-Adapter that reads line drawings."""
INSTRUCT = "instruct"
"""An instruct network: follows instructions such as "make it green"."""
IP_ADAPTER = "ip_adapter"
"""An IP-Adapter: shape and colors from an image, the place from the prompt."""
CONTROLNETS = ("canny", "inpainting", "super_resolution")
"""The kinds of hints that the shipped ControlNets read."""
CONTROLS = {**{name: f"controlnet_{name}" for name in CONTROLNETS}, "sketch": SKETCH}
"""Kind of hint -> the part that reads it, the sketch adapter among them."""


def parts() -> dict[str, Path]:
    """Kind -> shipped file of every part, as `pipelines.Parts` takes them."""
    return {kind: path(kind) for kind in _PARTS}


def path(kind: str) -> Path:
    """Where the shipped file of a part, a ControlNet ("controlnet_canny"), the high-res guides, the prior, the sketch
    adapter, the instruct network, the IP-Adapter or a LoRA lies.

    ValueError for what there is not.
    """
    known = (*_PARTS, GUIDES, PRIOR, INSTRUCT, IP_ADAPTER, *TURBO, *CONTROLS.values(), *_ADAPTERS)
    if kind not in known:
        raise ValueError(f"the tiny cascade has no {kind!r}; it has {', '.join(known)}")
    return Path(__file__).parent / f"{_ADAPTERS.get(kind, kind)}.safetensors"


def turbo(folder: Path | None = None) -> list[Applied]:
    """The LoRAs for a few steps: the shipped ones, or those of a folder with another training."""
    from ..adapters import Applied, read_lora

    return [Applied(read_lora((folder or Path(__file__).parent) / f"{name}.safetensors")) for name in TURBO]
