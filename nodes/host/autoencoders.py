"""VAE: Stage A, and the pair of EfficientNet encoder and previewer, for the host's nodes and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from ...cascade.errors import MissingPart
from ...cascade.images import stitched
from ...cascade.images.resize import normalize
from ...cascade.models import EffnetEncoder, Previewer, StageA
from ...cascade.models.stage_a import AT_ONCE_GPU
from .compat import build_empty_vae
from .files import read
from .networks import LayerFactory

DTYPES: dict[str, torch.dtype | None] = {"default": None, "bf16": torch.bfloat16, "fp32": torch.float32}

Memory = Callable[[tuple[int, ...], torch.dtype], float]
"""(shape of one image or latent [B, c, h, w], type) -> bytes in addition to the weights."""


class HostStageA(StageA):
    """Stage A in the host's convention: its latents are not divided by the scale factor (the MODEL does that)."""

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images) * self.config.scale_factor

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents / self.config.scale_factor)


class Coder(nn.Module):
    """The encoder to Stage C's latents and the previewer that decodes them; either may be missing."""

    def __init__(self, encoder: EffnetEncoder | None, previewer: Previewer | None) -> None:
        super().__init__()
        self.encoder, self.previewer = encoder, previewer

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, 16, H/32, W/32] of images [B, 3, H, W] in [0, 1]."""
        if self.encoder is None:
            raise MissingPart("This VAE is only a previewer. To encode images, load the EfficientNet encoder as well.")
        return self.encoder(normalize(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, 8h, 8w] of latents [B, 16, h, w]."""
        if self.previewer is None:
            raise MissingPart("This VAE is only an encoder. To decode Stage C's latents, load the previewer as well.")
        return self.previewer(latents)


@dataclass(frozen=True)
class Geometry:
    """What the host asks about a VAE."""

    channels: int
    down: int
    up: int
    encode_memory: Memory
    decode_memory: Memory
    encode_reach: int | None = None
    """Pixels to each side that a latent depends on; None where it is the whole image."""
    decode_reach: int | None = None
    """Latents to each side that a pixel depends on; None where nothing is known."""


class CascadeVAE(comfy.sd.VAE):
    """The host's VAE around a network of ours with `encode` and `decode`, images in [0, 1]."""

    def __init__(self, net: nn.Module, geometry: Geometry, dtype: torch.dtype) -> None:
        build_empty_vae(self)
        self.first_stage_model: Any = net.eval().requires_grad_(False)
        self.downscale_ratio, self.upscale_ratio = geometry.down, geometry.up
        self.latent_channels = geometry.channels
        self.memory_used_encode, self.memory_used_decode = geometry.encode_memory, geometry.decode_memory
        self.geometry = geometry
        self.process_input = lambda images: images
        self.process_output = lambda images: images.clamp_(0.0, 1.0)
        self.device, self.vae_dtype = comfy.model_management.vae_device(), dtype
        self.output_device = comfy.model_management.intermediate_device()
        comfy.model_management.archive_model_dtypes(net)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            net, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
        self.model_size()

    def decode_tiled_(self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16) -> Tensor:
        """The host's decoding in tiles, for latents [B, c, h, w].

        Where the network's reach is known, tiles overlap by so much that the result is the same as without tiles.
        """
        reach, net = self.geometry.decode_reach, self.first_stage_model
        if reach is None:
            return super().decode_tiled_(samples, tile_x, tile_y, overlap)

        def decode(part: Tensor) -> Tensor:
            return net.decode(part.to(self.device, self.vae_dtype)).to(self.output_device, torch.float32)

        side, up = max(min(tile_x, tile_y), 4 * reach), self.geometry.up
        images = _in_tiles(decode, samples, side=side, margin=reach, up=up)
        return self.process_output(images)

    def encode_tiled_(self, pixel_samples: Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 64) -> Tensor:
        """The same for images [B, 3, H, W] to latents."""
        reach, net, down = self.geometry.encode_reach, self.first_stage_model, self.geometry.down
        if reach is None:
            return super().encode_tiled_(pixel_samples, tile_x, tile_y, overlap)

        def encode(part: Tensor) -> Tensor:
            return net.encode(part.to(self.device, self.vae_dtype)).to(self.output_device, torch.float32)

        side = max(min(tile_x, tile_y) // down * down, 4 * reach)
        return _in_tiles(encode, pixel_samples, side=side, margin=reach, down=down)


def _in_tiles(function: Callable[[Tensor], Tensor], batch: Tensor, **tiles: int) -> Tensor:
    """`stitched` for each of a batch, with the host's progress bar."""
    bar = comfy.utils.ProgressBar(len(batch))
    results = []
    for i, each in enumerate(batch):

        def on_tile(done: int, count: int, i: int = i) -> None:
            bar.update_absolute(i * count + done, len(batch) * count)

        results.append(stitched(function, each[None], on_tile=on_tile, **tiles))
    return torch.cat(results)


def load_stage_a(path: Path, dtype: str = "default") -> CascadeVAE:
    """The VAE of a Stage A file. Raises CheckpointError."""
    wanted = dtype_of(dtype)
    with torch.inference_mode(False):
        net: Any = _network(HostStageA, path, "stage_a", wanted)
        vae = CascadeVAE(net, _stage_a_geometry(net.config), wanted)
    vae.patcher.cached_patcher_init = (_patcher, (load_stage_a, path, dtype))
    return vae


def load_coder(encoder: Path | None, previewer: Path | None, dtype: str = "default") -> CascadeVAE:
    """The VAE of an EfficientNet encoder's and a previewer's file, which may be one. Raises CheckpointError."""
    wanted = dtype_of(dtype)
    with torch.inference_mode(False):
        effnet: Any = None if encoder is None else _network(EffnetEncoder, encoder, "effnet", wanted)
        decoder: Any = None if previewer is None else _network(Previewer, previewer, "previewer", wanted)
        vae = CascadeVAE(Coder(effnet, decoder), _coder_geometry(effnet, decoder), wanted)
    vae.patcher.cached_patcher_init = (_patcher, (load_coder, encoder, previewer, dtype))
    return vae


def _patcher(load: Callable[..., CascadeVAE], *args: Any, **_: Any) -> Any:
    """For newer hosts, which load a model again for another device."""
    return load(*args).patcher


def dtype_of(choice: str) -> torch.dtype:
    working = [torch.bfloat16, torch.float32]
    device = comfy.model_management.vae_device()
    return DTYPES[choice] or comfy.model_management.vae_dtype(device, working)


def _network(cls: Any, path: Path, kind: str, dtype: torch.dtype) -> nn.Module:
    config, state = read(path, kind)
    with torch.device("meta"):
        net = cls(config, ops=LayerFactory(comfy.ops.disable_weight_init, dtype))
    net.load_state_dict(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}, assign=True
    )
    return net


def _stage_a_geometry(config: Any) -> Geometry:
    """The finest level decides, at half the image's size: more than four tensors of its width at once around the
    convolution, or three and what a part that goes through the MLP takes.
    """
    ratio, finest = config.compression, config.width // 2 ** (config.levels - 1)

    def memory(pixels: float, dtype: torch.dtype) -> float:
        positions = pixels / 4
        wide = max(4.7 * positions, 3 * positions + 11 * min(positions, AT_ONCE_GPU))
        return wide * finest * comfy.model_management.dtype_size(dtype)

    return Geometry(
        channels=config.latent_channels,
        down=ratio,
        up=ratio,
        encode_memory=lambda shape, dtype: memory(shape[2] * shape[3], dtype),
        decode_memory=lambda shape, dtype: memory(shape[2] * shape[3] * ratio**2, dtype),
        encode_reach=config.encoding_reach,
        decode_reach=config.decoding_reach,
    )


def _coder_geometry(encoder: Any, previewer: Any) -> Geometry:
    stem = 24 if encoder is None else encoder.config.stem
    width = 512 if previewer is None else previewer.config.width

    def encode_memory(shape: tuple[int, ...], dtype: torch.dtype) -> float:
        return shape[2] * shape[3] / 4 * stem * 7 * comfy.model_management.dtype_size(dtype)

    def decode_memory(shape: tuple[int, ...], dtype: torch.dtype) -> float:
        return shape[2] * shape[3] * 64 * width / 4 * 2.5 * comfy.model_management.dtype_size(dtype)

    return Geometry(channels=16, down=32, up=8, encode_memory=encode_memory, decode_memory=decode_memory)
