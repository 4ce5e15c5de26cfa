"""The tiny cascade: a whole Stable Cascade of a few megabytes that ships with the pack.

Here lie its weights and its card, what it was trained on (`grammar`, `drawing`), and how its images are judged
(`analysis`, `evaluation`).
"""

from __future__ import annotations

from pathlib import Path

_ADAPTERS = {"lora": "lora_heart", "embedding": "lora_heart"}
"""What is not a network: a LoRA with the learned token `[heart]`."""
_PARTS = ("text_encoder", "image_encoder", "effnet", "stage_c", "stage_b", "stage_a", "previewer")

GUIDES = "high_res_guides"
"""For 512 x 512 and 768 x 768 pixels, after a first pass of 256."""
CONTROLNETS = ("canny", "inpainting", "super_resolution")
"""The kinds of hints that the shipped ControlNets read."""


def parts() -> dict[str, Path]:
    """Kind -> shipped file of every part, as `pipelines.Parts` takes them."""
    return {kind: path(kind) for kind in _PARTS}


def path(kind: str) -> Path:
    """Where the shipped file of a part, a ControlNet ("controlnet_canny"), the high-res guides or the LoRA lies.

    ValueError for what there is not.
    """
    known = (*_PARTS, GUIDES, *(f"controlnet_{name}" for name in CONTROLNETS), *_ADAPTERS)
    if kind not in known:
        raise ValueError(f"the tiny cascade has no {kind!r}; it has {', '.join(known)}")
    return Path(__file__).parent / f"{_ADAPTERS.get(kind, kind)}.safetensors"
