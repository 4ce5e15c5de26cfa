"""Stage B: Stage A's latents from those of the EfficientNet encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import StrictBool
from torch import Tensor

from ..diffusion import Guidance, SamplingSettings, SeededNoise, sample
from ..errors import InvalidConfig
from ..models import StageB, StageBConfig
from .config import Amount, Count, NewPath, PathFromRoot, Pixels, Settings, Several, Share, TrainingConfig
from .data import (
    Cache,
    ImageSettings,
    OnChunk,
    Streamed,
    extents,
    fingerprint,
    importance,
    order_of,
    prepared,
    scaled,
    to_halves,
    to_images,
)
from .networks import encode_latents, for_training, frozen, model_config, new_network, sheet, to_finetune
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .task import Modules, pick_device
from .text import are_few, batch_texts, pooled_captions


class StageBSettings(Settings):
    """`effnet_sizes` are the sizes at which images go through the encoder, one chosen at random for each batch (the
    released training takes 0.5 to 1 of the image's size); `drop_effnet` of the latents become zeros, and `effnet_noise`
    is the deviation of noise on the others, so that Stage B corrects errors of Stage C.

    The images are shrunk for it smoothly, or as in the released training to the `nearest` pixel. They are for images
    that are square; others are scaled as much. With `pyramid_noise` the noise has large patches too, as in the released
    training. With `size_conditions` the network is told how much an image was enlarged (`sca`).

    Without a `text_encoder` the network is trained without text, and its text layer is zero. `start` is a Stage B to
    start from, of the sizes of `model` if that is given.
    """

    images: ImageSettings
    cache: NewPath
    stage_a: PathFromRoot
    effnet: PathFromRoot
    model: Mapping[str, Any] | None = None
    text_encoder: PathFromRoot | None = None
    start: PathFromRoot | None = None
    effnet_sizes: Several[Pixels] = (128, 160, 192, 224)
    drop_effnet: Share = 0.1
    drop_caption: Share = 0.05
    effnet_noise: Amount = 0.0
    effnet_resize: Literal["smooth", "nearest"] = "smooth"
    pyramid_noise: StrictBool = False
    size_conditions: StrictBool = False
    diffusion: DiffusionSettings = DiffusionSettings()
    sample_steps: Count = 10


class StageBBatch(NamedTuple):
    """latents [B, 4, h, w], effnet [B, 16, h', w'] with zeros where dropped, clip [B, 1, c], sca [B]; importance as
    `importance` gives it."""

    latents: Tensor
    effnet: Tensor
    clip: Tensor
    sca: Tensor
    importance: Tensor | None


class StageBTask(DiffusionTask):
    """Trains `stage_b` on cached latents."""

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: StageBSettings = config.settings
        self.device = pick_device(config.device)
        self.stage_a = frozen(settings.stage_a, self.device)
        self.encoder = frozen(settings.effnet, self.device)
        self.data = self._cache(on_chunk)
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)
        net = self._network()
        self.text_encoder: Any = None
        self.pooled = torch.zeros(1, 1, net.config.clip, device=self.device)
        if settings.text_encoder is None:
            torch.nn.init.zeros_(net.clip_mapper.weight)
        else:
            self._read_texts(settings.text_encoder, net.config.clip)
        self.modules = {"stage_b": net}
        self.diffusion = build_diffusion(settings.diffusion, net, trained=True)

    def _read_texts(self, path: Path, width: int) -> None:
        """The captions' embeddings, where they are few and fixed; else each batch has its own read."""
        self.text_encoder = frozen(path, self.device)
        if self.text_encoder.config.projection_dim != width:
            raise InvalidConfig(
                f"stage_b: model: clip is {width}, the text encoder gives {self.text_encoder.config.projection_dim}"
            )
        if are_few(self.data):
            self.pooled = pooled_captions(self.text_encoder, [*self.data.captions, ""])
            self.text_encoder = None

    def _clip(self, rows: np.ndarray, without_text: np.ndarray, seed: tuple[int, int]) -> Tensor:
        """The pooled embeddings [B, 1, c] of images' texts."""
        if self.text_encoder is not None:
            return pooled_captions(self.text_encoder, batch_texts(self.data, rows, seed, without_text))
        texts = np.where(without_text, len(self.pooled) - 1, rows % len(self.pooled))
        return self.pooled[torch.from_numpy(texts).to(self.device)]

    def _network(self) -> Any:
        settings, config = self.settings, self.config
        if settings.model is None:
            return to_finetune(settings.start, "stage_b", self.device, config)
        net = StageB(model_config(StageBConfig, settings.model, "stage_b: model"))
        new_network(for_training(net, self.device, config), config.seed, "stage_b", self.device)
        if settings.start is not None:
            start = frozen(settings.start, self.device)
            net.load_state_dict(start.state_dict())
            net.config = replace(net.config, process=start.config.process)
        return net

    def _cache(self, on_chunk: OnChunk | None) -> Cache | Streamed:
        settings = self.settings
        # Of a stream the batch's own size alone is encoded.
        sizes = [] if settings.images.stream else sorted(set(settings.effnet_sizes))

        precise = self.config.precision == "float32"

        @torch.no_grad()
        @torch.autocast(self.device.type, torch.bfloat16, enabled=not precise)
        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            arrays: dict[str, list[np.ndarray]] = {}
            for part in np.array_split(pixels, max(1, len(pixels) // 16)):
                images = to_images(torch.from_numpy(part).to(self.device))
                found = {f"effnet_{size}": self._encoded(images, size) for size in sizes}
                for name, rows in {"latents": to_halves(self.stage_a.encode(images)), **found}.items():
                    arrays.setdefault(name, []).append(rows)
            made = {name: np.concatenate(parts) for name, parts in arrays.items()}
            return made if sizes else {**made, "images": pixels}

        key = f"{self.config.precision}-{fingerprint(settings.stage_a)}-{fingerprint(settings.effnet)}-{sizes}"
        key = key if settings.effnet_resize == "smooth" else f"{key}-{settings.effnet_resize}"
        return prepared(settings.cache, "stage_b", settings.images, compute, key=key, on_chunk=on_chunk)

    def _encoded(self, images: Tensor, size: int) -> np.ndarray:
        wanted = scaled(images, self.settings.images.size, size)
        if self.settings.effnet_resize == "nearest":
            images = F.interpolate(images, wanted, mode="nearest")
        return encode_latents(self.encoder, images, wanted)

    @torch.no_grad()
    def _effnet(self, size: int, rows: np.ndarray) -> Tensor:
        """The encoder's latents [B, 16, h, w] of some images."""
        if not self.settings.images.stream:
            return self.data.take(f"effnet_{size}", rows, self.device).float()
        images = to_images(self.data.take("images", rows, self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision != "float32"):
            return torch.from_numpy(self._encoded(images, size)).to(self.device).float()

    def batch(self, index: int) -> StageBBatch:
        settings = self.settings
        rows = self.order.rows(index, self.config.batch_size)
        random = np.random.default_rng((self.config.seed, index))
        size = int(random.choice(settings.effnet_sizes))
        kept = torch.from_numpy(random.random(len(rows)) >= settings.drop_effnet).to(self.device)
        effnet = self._effnet(size, rows) * kept[:, None, None, None]
        latents = self.data.take("latents", rows, self.device).float()
        without_text = random.random(len(rows)) < settings.drop_caption
        clip = self._clip(rows, without_text, (self.config.seed, index))
        sca = extents(self.data, rows, self.device)[:, 0]
        return StageBBatch(latents, effnet, clip, sca, importance(self.data, rows, latents))

    def loss(self, batch: StageBBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        net: Any = self.modules["stage_b"]
        effnet = batch.effnet
        if self.settings.effnet_noise > 0:
            kept = effnet.flatten(1).any(dim=1)[:, None, None, None]
            noise = torch.randn(effnet.shape, generator=generator, device=effnet.device)
            effnet = effnet + self.settings.effnet_noise * noise * kept
        sca = batch.sca if self.settings.size_conditions else None
        conditions = net.conditions(effnet, batch.clip, size=batch.latents.shape[-2:], sca=sca)
        return self.diffusion_loss(
            lambda x, r: net.denoise(x, r, conditions), batch.latents, generator, batch.importance
        )

    def noise(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        noise = super().noise(x0, generator)
        return pyramid_noise(noise, generator) if self.settings.pyramid_noise else noise

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image:
        """Images through Stage A alone, and through encoder, Stage B and Stage A."""
        net: Any = modules["stage_b"]
        rows = self.data.first(8)
        latents = self.data.take("latents", rows, self.device).float()
        size = max(set(self.settings.effnet_sizes), key=self.settings.effnet_sizes.count)
        effnet = self._effnet(size, rows)
        clip = self._clip(rows, np.zeros(len(rows), bool), (self.config.seed, 0))
        made = sample(
            net.denoise,
            SeededNoise(range(len(rows))).start(*latents.shape[1:]).to(self.device),
            SamplingSettings(steps=self.settings.sample_steps, guidance=Guidance(cfg=1.0)),
            cond={"conditions": net.conditions(effnet, clip, size=latents.shape[-2:])},
            diffusion=self.diffusion,
        )
        captions = self.data.texts(rows, (self.config.seed,))
        return sheet([self.stage_a.decode(latents), self.stage_a.decode(made)], labels=captions)


LARGEST_PATCHES = 16
"""Patches a side of the finest of the coarser grids."""


def pyramid_noise(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Noise [B, c, h, w] with that of coarser grids added, of variance 1: grids of at most 16 patches a side, each half
    as fine as the one before, with 0.75 to the power of its level. From the released training of Stage B."""
    height, width = noise.shape[-2:]
    total, variance = noise, 1.0
    for level in range(1, 10):
        grid = height >> level, width >> level
        if min(grid) < 1:
            break
        if min(grid) <= LARGEST_PATCHES:
            coarse = torch.randn(*noise.shape[:2], *grid, generator=generator, device=noise.device)
            total = total + F.interpolate(coarse, (height, width), mode="nearest") * 0.75**level
            variance += 0.75 ** (2 * level)
        if min(grid) == 1:
            break
    return total / variance**0.5
