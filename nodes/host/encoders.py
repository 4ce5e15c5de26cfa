"""CLIP and CLIP_VISION: the host's own classes, with the sizes of the file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import torch

from ...cascade.checkpoints import ClipTextConfig
from ...cascade.errors import IncompatibleCheckpoint
from .files import read
from .folders import embeddings
from .models import DTYPES


def load_text_encoder(path: Path, dtype: str = "default") -> Any:
    """The CLIP of a text encoder's file: prompt weights, long prompts and embeddings as the host does them.

    Raises CheckpointError.
    """
    with torch.inference_mode(False):
        config, state = read(path, "text_encoder")
        if config.projection_dim != config.hidden_size or config.vocab_size != ClipTextConfig.vocab_size:
            raise IncompatibleCheckpoint("ComfyUI cannot hold a text encoder of these sizes", path)
        target = comfy.supported_models_base.ClipTarget(_tokenizer(config.hidden_size), _text_model(config))
        options = {} if DTYPES[dtype] is None else {"dtype": DTYPES[dtype]}
        clip = comfy.sd.CLIP(
            target,
            embedding_directory=embeddings(),
            parameters=sum(tensor.numel() for tensor in state.values()),
            state_dict=[state],
            model_options=options,
        )
    clip.patcher.cached_patcher_init = (_clip_patcher, (path, dtype))
    return clip


def _clip_patcher(path: Path, dtype: str, **_: Any) -> Any:
    """For newer hosts, which load a model again for another device."""
    return load_text_encoder(path, dtype).patcher


def _text_model(config: ClipTextConfig) -> type[Any]:
    """The host's CLIP of Stable Cascade, of any size."""

    class Tower(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                layer="hidden",
                layer_idx=-1,
                textmodel_json_config=config.to_dict(),
                special_tokens={"start": 49406, "end": 49407, "pad": 49407},
                layer_norm_hidden_state=False,
                enable_attention_masks=True,
                return_projected_pooled=True,
                model_options={**(model_options or {}), "model_name": "clip_g"},
            )

    class TextModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(
                device=device, dtype=dtype, clip_name="g", clip_model=Tower, model_options=model_options or {}
            )

    return TextModel


def _tokenizer(width: int) -> type[Any]:
    """The host's tokenizer of Stable Cascade, for embeddings of any width."""

    class OneTokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                pad_with_end=True,
                embedding_directory=embedding_directory,
                embedding_size=width,
                embedding_key="clip_g",
                tokenizer_data=tokenizer_data or {},
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                embedding_directory=embedding_directory,
                tokenizer_data=tokenizer_data or {},
                clip_name="g",
                tokenizer=OneTokenizer,
            )

    return Tokenizer


def load_image_encoder(path: Path) -> Any:
    """The CLIP_VISION of an image encoder's file. Raises CheckpointError."""
    with torch.inference_mode(False):
        config, state = read(path, "image_encoder")
        # Older hosts read the sizes from a file alone.
        with tempfile.TemporaryDirectory() as folder:
            sizes = Path(folder) / "config.json"
            sizes.write_text(json.dumps({**config.to_dict(), "model_type": "clip_vision_model"}), encoding="utf-8")
            vision = comfy.clip_vision.ClipVisionModel(str(sizes))
        vision.load_sd(state)
    return vision
