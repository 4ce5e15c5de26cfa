"""Writing checkpoints, one tensor at a time and atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, IncompatibleCheckpoint
from ..files import write_atomically
from ..models import Config, Process, StackConfig
from . import quantizing
from .clip import ClipConfig
from .detection import METADATA_CONFIG, METADATA_KIND, Part, choose, detect_parts
from .header import ALIGNMENT, TensorInfo, header_bytes
from .layouts import DIFFUSERS_FOLDERS, Rule, from_ours, prefix, rules
from .loading import FLOAT8, converted, expected_network, read_piece, settled_config
from .network_kinds import KINDS, config_of, kind_of
from .quantizing import QUANTIZATIONS, Quantization
from .sources import open_tensors

LAYOUTS = ("cascade", "comfyui", "diffusers")
"""What can be written: a single file as released with our metadata, a checkpoint of ComfyUI with one or more networks,
a folder of diffusers with one network."""

OnTensor = Callable[[int, int], None]
"""Called with (tensors written, all tensors)."""


@dataclass(frozen=True)
class _Output:
    """A tensor to be written: its name in the file, and a function that reads it."""

    name: str
    info: TensorInfo
    read: Callable[[], Tensor]


def save_model(net: nn.Module, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Write a network atomically as a single file as released, with its config as metadata.

    Args:
        net: of any kind that `load_model` returns.
        path: of the .safetensors file.
        dtype: of the floating tensors; None keeps theirs.

    Raises:
        TypeError: not a network of Stable Cascade.
        OSError: it could not be written; an existing file is unchanged.
    """
    kind, config, state = kind_of(net), config_of(net), net.state_dict()
    outputs = []
    for name, ours in from_ours(state, rules("released", kind)).items():
        infos = [_info(state[each].shape, state[each].dtype, dtype) for each in ours]
        outputs.append(_Output(name, _joined(infos), _reading([state[each] for each in ours])))
    _write_file(Path(path), outputs, _metadata(kind, config), None)


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write named tensors as a safetensors file. The file is replaced whole or not at all.

    Raises:
        OSError: it could not be written; what was there is still there.
    """
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    outputs = [_Output(name, infos[name], _reading([tensor])) for name, tensor in tensors.items()]
    _write_file(Path(path), outputs, metadata, None)


def convert(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    layout: str = "cascade",
    part: str | None = None,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    on_tensor: OnTensor | None = None,
) -> None:
    """Write checkpoints in another layout or type, with one tensor at a time in memory.

    Args:
        sources: one file or folder, or several of different networks, which become one checkpoint of ComfyUI.
        target: a file, which is written atomically; for diffusers a folder, which must be empty or not exist.
        layout: one of `LAYOUTS`.
        part: the kind of network to convert, if a source contains several.
        dtype: of the floating tensors; None keeps theirs (float8 with factors becomes float32).
        quantize: a name of `QUANTIZATIONS`, for a Stage C or Stage B in the layout cascade: most of its matrices take
            one byte a number; the others are of `dtype`.

    Raises:
        ValueError: an unknown layout, several networks for a layout that holds one, or nothing that can be quantized.
        CheckpointError: as `load_model`, or the target is one of the sources.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    target = Path(target)
    if any(target.exists() and Path(path).exists() and target.samefile(path) for path in paths):
        raise CheckpointError("source and target are the same; write to another name", target)
    parts = [each for path in paths for each in _chosen(path, part, layout)]
    kinds = [each.kind for each in parts]
    if len(set(kinds)) < len(kinds) or (len(kinds) > 1 and layout != "comfyui"):
        raise ValueError(f"the layout {layout} cannot hold {', '.join(kinds)} together")
    if layout == "comfyui" and (without := [kind for kind in kinds if not prefix(kind)]):
        raise ValueError(f"a ComfyUI checkpoint has no place for a {without[0]}")
    if quantize is not None and (layout != "cascade" or kinds[0] not in quantizing.KINDS):
        raise ValueError(f"only a Stage C or Stage B in the layout cascade can be quantized, not {', '.join(kinds)}")
    configs = [settled_config(each) for each in parts]
    with _outputs(parts, configs, layout, dtype, quantize is not None) as outputs:
        if layout == "diffusers":
            _write_folder(target, parts[0].kind, configs[0], outputs, on_tensor)
        elif layout == "comfyui":
            metadata = {
                f"{METADATA_CONFIG}.{kind}": json.dumps(config.to_dict()) for kind, config in zip(kinds, configs)
            }
            _write_file(target, outputs, metadata, on_tensor)
        else:
            metadata = _metadata(kinds[0], configs[0])
            if quantize is not None:
                outputs, more = _quantized(outputs, QUANTIZATIONS[quantize])
                metadata |= more
            _write_file(target, outputs, metadata, on_tensor)


def _quantized(outputs: Iterable[_Output], quantization: Quantization) -> tuple[list[_Output], dict[str, str]]:
    """The tensors to write with most matrices quantized, and the metadata that say so."""
    written, layers = [], []
    for output in outputs:
        if not quantizing.is_tolerant(output.name, output.info.shape):
            written.append(output)
            continue
        layer = output.name.removesuffix(".weight")
        layers.append(layer)
        read, shape = output.read, output.info.shape
        weight, factor = TensorInfo(shape, quantization.dtype), TensorInfo((), torch.float32)
        written.append(_Output(output.name, weight, lambda read=read: quantization.quantized(read())))
        written.append(_Output(layer + quantizing.SCALE, factor, lambda read=read: quantization.scale(read())))
    return written, quantizing.metadata_of(layers, quantization)


def _chosen(path: str | os.PathLike[str], part: str | None, layout: str) -> list[Part]:
    parts = detect_parts(open_tensors(path))
    return parts if part is None and layout == "comfyui" else [choose(parts, part)]


@contextmanager
def _outputs(
    parts: Sequence[Part], configs: Sequence[Config], layout: str, dtype: torch.dtype | None, own_names: bool
) -> Iterator[list[_Output]]:
    """The tensors to write, on request under our names; the sources stay open meanwhile."""
    table = "released" if layout == "cascade" else layout
    with ExitStack() as stack:
        outputs = []
        for part, config in zip(parts, configs):
            get = stack.enter_context(part.source.reader())
            names = () if own_names else rules(table, part.kind)
            start = prefix(part.kind) if table == "comfyui" else ""
            outputs += _converted_part(part, config, names, start, dtype, get)
        yield outputs


def _converted_part(
    part: Part, config: Config, names: Sequence[Rule], start: str, dtype: torch.dtype | None, get: Any
) -> list[_Output]:
    expected = expected_network(part, config).state_dict()

    def reading(names: Sequence[str]) -> Callable[[], Tensor]:
        # Raises for quantized tensors now, before anything is written.
        for name in names:
            piece = part.pieces[name]
            converted(part, name, torch.empty(0, dtype=part.tensors[piece.name].dtype), expected[name], None)
        return lambda: _cat([read_piece(part, part.pieces[name], get) for name in names])

    outputs = []
    for name, ours in from_ours(expected, names).items():
        infos = []
        for each in ours:
            stored = part.tensors[part.pieces[each].name].dtype
            stored = torch.float32 if part.pieces[each].name in part.scales else stored
            stored = stored if expected[each].is_floating_point() else expected[each].dtype
            infos.append(_info(expected[each].shape, stored, dtype))
        outputs.append(_Output(start + name, _joined(infos), reading(ours)))
    return outputs


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _reading(tensors: Sequence[Tensor]) -> Callable[[], Tensor]:
    return lambda: _cat([tensor.detach().cpu() for tensor in tensors])


def _info(shape: Sequence[int], stored: torch.dtype, wanted: torch.dtype | None) -> TensorInfo:
    keep = wanted is None or not stored.is_floating_point or (wanted in FLOAT8 and len(shape) < 2)
    dtype = stored if keep or wanted is None else wanted
    return TensorInfo(tuple(shape), dtype)


def _joined(infos: Sequence[TensorInfo]) -> TensorInfo:
    """Several tensors as one, along dimension 0."""
    first = infos[0]
    shape = (sum(info.shape[0] for info in infos), *first.shape[1:]) if len(infos) > 1 else first.shape
    return TensorInfo(shape, first.dtype if all(info.dtype == first.dtype for info in infos) else torch.float32)


def _metadata(kind: str, config: Config) -> dict[str, str]:
    return {"format": "pt", METADATA_KIND: kind, METADATA_CONFIG: json.dumps(config.to_dict())}


def _write_file(
    path: Path, outputs: Iterable[_Output], metadata: Mapping[str, str], on_tensor: OnTensor | None
) -> None:
    # Whole multiples of 64 bytes first: each of them begins at one. Then wide types: each begins at one of its size.
    def rank(output: _Output) -> tuple[bool, int, str]:
        return output.info.bytes % ALIGNMENT != 0, -output.info.dtype.itemsize, output.name

    ordered = sorted(outputs, key=rank)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header_bytes({output.name: output.info for output in ordered}, metadata))
            for index, output in enumerate(ordered):
                tensor = output.read().to(output.info.dtype).contiguous()
                tensor.reshape(-1).view(torch.uint8).numpy().tofile(file)
                if on_tensor is not None:
                    on_tensor(index + 1, len(ordered))

    write_atomically(path, write)


def _write_folder(
    path: Path, kind: str, config: Config, outputs: Iterable[_Output], on_tensor: OnTensor | None
) -> None:
    if kind not in DIFFUSERS_FOLDERS:
        raise IncompatibleCheckpoint(f"diffusers has no {KINDS[kind].title}", path)
    if isinstance(config, StackConfig) and config.process != Process():
        text = f"it predicts {config.process.target}, and diffusers samples {KINDS[kind].title} as released only"
        raise IncompatibleCheckpoint(text, path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(17, "the folder is not empty", str(path))
    name = "model" if isinstance(config, ClipConfig) else "diffusion_pytorch_model"
    text = json.dumps(foreign_config(kind, config), indent=2) + "\n"

    def write(folder: Path) -> None:
        _write_file(folder / f"{name}.safetensors", outputs, {"format": "pt"}, on_tensor)
        (folder / "config.json").write_text(text, encoding="utf-8")

    write_atomically(path, write)


def foreign_config(kind: str, config: Any) -> dict[str, Any]:
    """config.json as diffusers or transformers write it."""
    if kind == "text_encoder":
        return {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model", **config.to_dict()}
    if kind == "image_encoder":
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            **config.to_dict(),
        }
    if kind == "stage_a":
        return {
            "_class_name": "PaellaVQModel",
            "levels": config.levels,
            "bottleneck_blocks": config.bottleneck_blocks,
            "embed_dim": config.width,
            "latent_channels": config.latent_channels,
            "num_vq_embeddings": config.codebook_size,
            "scale_factor": config.scale_factor,
        }
    return _unet_config(kind, config)


def _unet_config(kind: str, config: Any) -> dict[str, Any]:
    """The arguments of diffusers' StableCascadeUNet."""
    block = {"C": "SDCascadeResBlock", "T": "SDCascadeTimestepBlock", "A": "SDCascadeAttnBlock"}
    levels = config.levels
    found: dict[str, Any] = {
        "_class_name": "StableCascadeUNet",
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "timestep_ratio_embedding_dim": config.timestep_channels,
        "patch_size": config.patch_size,
        "conditioning_dim": config.condition_channels,
        "block_out_channels": [level.width for level in levels],
        "num_attention_heads": [level.heads for level in levels],
        "down_num_layers_per_block": [level.depth for level in levels],
        "up_num_layers_per_block": [level.depth for level in levels[::-1]],
        "down_blocks_repeat_mappers": [level.down_repeats for level in levels],
        "up_blocks_repeat_mappers": [level.up_repeats for level in levels[::-1]],
        "block_types_per_layer": [[block[letter] for letter in level.pattern] for level in levels],
        "clip_seq": config.condition_tokens,
        "kernel_size": config.kernel_size,
        "dropout": [0.0] * len(levels),
        "self_attn": config.self_attention,
        "timestep_conditioning_type": list(config.timestep_conditions),
    }
    if kind == "stage_c":
        return found | {
            "clip_text_in_channels": config.clip_text,
            "clip_text_pooled_in_channels": config.clip_text_pooled,
            "clip_image_in_channels": config.clip_img,
            "switch_level": list(config.switch_level),
        }
    return found | {
        "clip_text_pooled_in_channels": config.clip,
        "effnet_in_channels": config.effnet,
        "pixel_mapper_in_channels": config.pixels,
    }
