"""A LoRA of a folder of images without a settings file: images and class images as files, and every setting by size."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from ..files import write_atomically
from ..pipelines import Parts
from .class_images import make_class_images, write_image
from .config import parse_config, put
from .folders import FolderImages
from .loop import Outcome
from .lora import defaults_for, is_small
from .tasks import SETTINGS, ProgressBars, train

log = logging.getLogger("cascade")

SETTINGS_FILE = "settings.yaml"
_ABOUT_SETTINGS = """\
# The settings of a LoRA, as `python -m cascade train lora` chose them. To change more than that command can, copy this
# file, give it another `output`, and run `python -m cascade train COPY.yaml`.
"""

NETWORKS = ("stage_c", "text_encoder", "effnet", "previewer")
"""What a training reads; the previewer may be missing."""

# What the size decides beside `defaults_for`. A small one has the loss weight and the shift that the tiny cascade was
# trained with. Several random vectors are easily told apart from the words that it knows.
_SMALL: Mapping[str, Any] = {
    "steps": 1200,
    "learning_rate_final": 0.05,
    "warmup": 30,
    "weight_decay": 0.0,
    "ema": 0.99,
    "threads": 1,  # Its layers are too small to share.
    "lora": {
        "target_modules": ["attention", "*.channelwise.*", "*.kv_mapper.*", "*.depthwise"],
        "rank": 8,
        "alpha": 40,
        "diffusion": {"loss_weight": "p2", "loss_weight_options": {"k": 0.01, "gamma": 1.0}, "shift": 2},
    },
}
_LARGE: Mapping[str, Any] = {
    "steps": 1000,
    "warmup": 20,
    "lora": {"target_modules": ["attention"], "rank": 16},
}
_VECTORS, _TOKEN_RATE = 4, 1e-2  # of the token of a small one


@dataclass(frozen=True, kw_only=True)
class PlainLora:
    """What is asked for: a LoRA of the images of a folder.

    images: the folder, or a webdataset tar.
    folder: of the run.
    name: of the file in it, without its ending.
    token: None for a style.
    initializer: a text for something similar.
    steps: None for what suits the size.
    changes: further keys of the settings.
    class_prompts: captions of the images -> prompts of class images.
    at_once: class images that are generated together.
    """

    images: Path
    folder: Path
    name: str
    token: str | None = None
    initializer: str | None = None
    steps: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    class_prompts: Callable[[Sequence[str]], Sequence[str]] = lambda _: ()
    at_once: int = 1


def train_plain(wanted: PlainLora, parts: Parts, *, progress: ProgressBars | None = None) -> tuple[Outcome, list[str]]:
    """Train it, going on with what is in its folder; how that ended, and the captions of the images.

    parts: files of "stage_c", "text_encoder", "effnet", and for class images "stage_b" and "stage_a". Raises as `train`
    and `generate`.
    """
    folder = wanted.folder.absolute()
    networks: dict[str, Any] = {kind: parts.sources[kind] for kind in NETWORKS if kind in parts.sources}
    size = defaults_for(networks["stage_c"]).resolution
    captions = prepare_images(wanted.images, folder / "images", size, wanted.token)
    prompts = wanted.class_prompts(captions)
    values = plain_settings(wanted, networks, parts.device, [*list(dict.fromkeys(captions))[:3], *prompts[:1]], prompts)
    config = parse_config(values, SETTINGS, where="train lora")
    text = _ABOUT_SETTINGS + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_atomically(folder / SETTINGS_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    if prompts:
        on_image = progress("images of the class", "image") if progress else None
        make_class_images(parts, prompts, folder / "class", size=size, at_once=wanted.at_once, on_image=on_image)
    return train(config, progress=progress), captions


def with_token(caption: str, token: str) -> str:
    """The caption with the token: in place of the token's word where it has that, else in front of it."""
    if token.lower() in caption.lower():
        return caption
    word = re.escape(token.strip("[]<>{}*"))
    changed, count = re.subn(rf"\b{word}s?\b", lambda _: token, caption, count=1, flags=re.IGNORECASE)
    return changed if count else f"{token}, {caption}".removesuffix(", ")


def without_token(caption: str, token: str, instead: str = "") -> str:
    """The caption with `instead` in place of the token, for an image of the class."""
    text = re.sub(re.escape(token), lambda _: instead, caption, flags=re.IGNORECASE)
    return " ".join(text.split()).strip(" ,")


def prepare_images(path: Path, folder: Path, size: int, token: str | None) -> list[str]:
    """Write the images of `path` as the training sees them to `folder`, each with its caption beside it; the captions.

    A caption is the text file's beside the image, else its name in words without a number at its end. Each gets the
    token. Raises InvalidConfig for a folder without images.
    """
    source = FolderImages(path, size)
    captions: list[str] = []
    for seen in (seen for part in source.parts() for seen in source.read(part)):
        text = seen.texts[0] or ""
        words = text if seen.captioned else re.sub(r"[\W_]*\(?\d+\)?$", "", text).replace("-", " ")
        captions.append(words if token is None else with_token(words, token))
        write_image(folder, len(captions) - 1, Image.fromarray(seen.pixels), captions[-1])
    for line in source.problems(len(captions)):
        log.warning("%s", line)
    for old in folder.glob("[0-9][0-9][0-9][0-9].*"):
        if int(old.stem) >= len(captions):
            old.unlink()
    return captions


def plain_settings(
    wanted: PlainLora,
    networks: Mapping[str, Path],
    device: torch.device | str,
    sample_prompts: Sequence[str] = (),
    class_prompts: Sequence[str] = (),
) -> dict[str, Any]:
    """The settings, as a file has them, for the images in the run's `images` and, with class prompts, `class`.

    networks: files of `NETWORKS`. Raises CheckpointError for a Stage C that cannot be read.
    """
    folder, small = wanted.folder.absolute(), is_small(networks["stage_c"])
    by_size, chosen = defaults_for(networks["stage_c"]), _SMALL if small else _LARGE
    vectors, token_rate = (_VECTORS, _TOKEN_RATE) if small else (1, by_size.token_learning_rate)
    steps = wanted.steps or int(chosen["steps"])
    token = {"text": wanted.token, "initializer": wanted.initializer, "vectors": vectors}

    def images(kind: str) -> dict[str, Any]:
        return {"source": "folder", "path": str(folder / kind), "size": by_size.resolution}

    values = {
        "task": "lora",
        "output": str(folder),
        "seed": 1,
        "batch_size": 4,
        "learning_rate": by_size.learning_rate,
        **chosen,
        "steps": steps,
        "precision": "bfloat16" if torch.device(device).type == "cuda" else "float32",
        "device": str(device),
        "checkpoint_every": 100,
        "sample_every": max(1, steps // 4),
        "log_every": max(1, min(20, steps // 20)),
        "lora": {
            "images": images("images"),
            "class_images": images("class") if class_prompts else None,
            "class_target": "network",
            "cache": str(folder / "cache"),
            **{kind: str(path) for kind, path in networks.items()},
            **chosen["lora"],
            "tokens": None if wanted.token is None else [token],
            "token_learning_rate": None if wanted.token is None else token_rate,
            "sample_prompts": list(sample_prompts) or None,
            "name": wanted.name,
        },
    }
    for key, value in wanted.changes.items():
        put(values, key, value, "--set")
    return values
