"""Stage B: Stage A's latents from those of the EfficientNet encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..diffusion import Guidance, SamplingSettings, SeededNoise, sample
from ..errors import InvalidConfig
from ..models import StageB, StageBConfig
from .config import Amount, Count, NewPath, PathFromRoot, Pixels, Settings, Several, Share, TrainingConfig
from .data import Cache, ImageSettings, OnChunk, Order, cached, fingerprint, open_images, to_halves, to_images
from .networks import encode_latents, for_training, frozen, model_config, new_network, sheet, to_finetune
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .task import Modules, derive_seed, pick_device
from .text import pooled_captions


class StageBSettings(Settings):
    """`effnet_sizes` are the sizes at which images go through the encoder, one chosen at random for each batch (the
    released training takes 0.5 to 1 of the image's size); `drop_effnet` of the latents become zeros, and `effnet_noise`
    is the deviation of noise on the others, so that Stage B corrects errors of Stage C.

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
    diffusion: DiffusionSettings = DiffusionSettings()
    sample_steps: Count = 10


class StageBBatch(NamedTuple):
    """latents [B, 4, h, w], effnet [B, 16, h', w'] with zeros where dropped, clip [B, 1, c]."""

    latents: Tensor
    effnet: Tensor
    clip: Tensor


class StageBTask(DiffusionTask):
    """Trains `stage_b` on cached latents."""

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: StageBSettings = config.settings
        self.device = pick_device(config.device)
        self.stage_a = frozen(settings.stage_a, self.device)
        self.data = self._cache(on_chunk)
        self.seen = [self.data.source]
        self.order = Order(len(self.data.captions), derive_seed(config.seed, "order"), config.held_out)
        net = self._network()
        if settings.text_encoder is None:
            self.pooled = torch.zeros(1, 1, net.config.clip, device=self.device)
            torch.nn.init.zeros_(net.clip_mapper.weight)
        else:
            captions = [*self.data.captions, ""]
            self.pooled = pooled_captions(frozen(settings.text_encoder, self.device), captions)
        if self.pooled.shape[-1] != net.config.clip:
            raise InvalidConfig(
                f"stage_b: model: clip is {net.config.clip}, the text encoder gives {self.pooled.shape[-1]}"
            )
        self.modules = {"stage_b": net}
        self.diffusion = build_diffusion(settings.diffusion, net, trained=True)

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

    def _cache(self, on_chunk: OnChunk | None) -> Cache:
        settings, encoder = self.settings, frozen(self.settings.effnet, self.device)
        sizes = sorted(set(settings.effnet_sizes))

        precise = self.config.precision == "float32"

        @torch.no_grad()
        @torch.autocast(self.device.type, torch.bfloat16, enabled=not precise)
        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            arrays: dict[str, list[np.ndarray]] = {}
            for part in np.array_split(pixels, max(1, len(pixels) // 16)):
                images = to_images(torch.from_numpy(part).to(self.device))
                found = {f"effnet_{size}": encode_latents(encoder, images, size) for size in sizes}
                for name, rows in {"latents": to_halves(self.stage_a.encode(images)), **found}.items():
                    arrays.setdefault(name, []).append(rows)
            return {name: np.concatenate(parts) for name, parts in arrays.items()}

        key = f"{self.config.precision}-{fingerprint(settings.stage_a)}-{fingerprint(settings.effnet)}-{sizes}"
        source = open_images(settings.images)
        return cached(settings.cache, "stage_b", source, compute, key=key, on_chunk=on_chunk)

    def batch(self, index: int) -> StageBBatch:
        settings = self.settings
        rows = self.order.rows(index, self.config.batch_size)
        random = np.random.default_rng((self.config.seed, index))
        size = int(random.choice(settings.effnet_sizes))
        kept = torch.from_numpy(random.random(len(rows)) >= settings.drop_effnet).to(self.device)
        effnet = self.data.take(f"effnet_{size}", rows, self.device).float() * kept[:, None, None, None]
        latents = self.data.take("latents", rows, self.device).float()
        without_text = random.random(len(rows)) < settings.drop_caption
        texts = np.where(without_text, len(self.pooled) - 1, rows % len(self.pooled))
        return StageBBatch(latents, effnet, self.pooled[torch.from_numpy(texts).to(self.device)])

    def loss(self, batch: StageBBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        net: Any = self.modules["stage_b"]
        effnet = batch.effnet
        if self.settings.effnet_noise > 0:
            kept = effnet.flatten(1).any(dim=1)[:, None, None, None]
            noise = torch.randn(effnet.shape, generator=generator, device=effnet.device)
            effnet = effnet + self.settings.effnet_noise * noise * kept
        conditions = net.conditions(effnet, batch.clip, size=batch.latents.shape[-2:])
        return self.diffusion_loss(lambda x, r: net.denoise(x, r, conditions), batch.latents, generator)

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image:
        """Images through Stage A alone, and through encoder, Stage B and Stage A."""
        net: Any = modules["stage_b"]
        rows = np.arange(min(8, len(self.data.captions)))
        latents = self.data.take("latents", rows, self.device).float()
        size = max(set(self.settings.effnet_sizes), key=self.settings.effnet_sizes.count)
        effnet = self.data.take(f"effnet_{size}", rows, self.device).float()
        clip = self.pooled[torch.from_numpy(rows % len(self.pooled)).to(self.device)]
        made = sample(
            net.denoise,
            SeededNoise(rows.tolist()).start(*latents.shape[1:]).to(self.device),
            SamplingSettings(steps=self.settings.sample_steps, guidance=Guidance(cfg=1.0)),
            cond={"conditions": net.conditions(effnet, clip, size=latents.shape[-2:])},
            diffusion=self.diffusion,
        )
        captions = [self.data.captions[row] for row in rows]
        return sheet([self.stage_a.decode(latents), self.stage_a.decode(made)], labels=captions)
