"""A prior: the image embedding that belongs to a text, by diffusion (Ramesh et al. 2022, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..conditioning import ImageEncoder, TextEncoder
from ..errors import InvalidConfig
from ..models import Prior, PriorConfig
from .config import Count, NewPath, PathFromRoot, Settings, Share, TrainingConfig
from .data import ImageSettings, OnChunk, fingerprint, order_of, prepared, squares_only, to_images
from .networks import frozen, model_config, new_network
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .stage_c import images_in_batch
from .task import pick_device
from .text import batch_texts, tokenized

AT_ONCE = 64
"""Images that are embedded together."""
MEASURED = 10_000
"""Images of which the mean and the deviation of the embeddings are taken."""


class PriorDiffusion(DiffusionSettings):
    """What is predicted is the embedding itself, at every noise level with the same weight."""

    target: str = "x0"
    loss_weight: str = "constant"


class PriorSettings(Settings):
    """`text_encoder` and `image_encoder` are those of the Stage C that the prior is for, `model` has its sizes.

    `start` is a prior of the same sizes to go on from; it keeps its mean and deviation of the embeddings. Captions are
    left out with probability `drop_caption`, so that the prior can be guided. A batch holds batch_size / `repeats`
    images, each at `repeats` noise levels, and reads each caption once.
    """

    images: ImageSettings
    cache: NewPath
    text_encoder: PathFromRoot
    image_encoder: PathFromRoot
    start: PathFromRoot | None = None
    model: Mapping[str, Any] = {}
    repeats: Count = 1
    drop_caption: Share = 0.1
    diffusion: PriorDiffusion = PriorDiffusion()


class PriorBatch(NamedTuple):
    """embeddings [U, 1, c] of the images; ids and mask [U, 1, 77]."""

    embeddings: Tensor
    ids: Tensor
    mask: Tensor


class PriorTask(DiffusionTask):
    """Trains `prior` on the cached embeddings of images."""

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        self.count = images_in_batch(config)
        settings: PriorSettings = config.settings
        self.device = pick_device(config.device)
        halves = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.text = TextEncoder(frozen(settings.text_encoder, self.device, "text_encoder", halves))
        encoder = frozen(settings.image_encoder, self.device, "image_encoder")
        net: Any = Prior(self._config(encoder))
        self.modules = {"prior": new_network(net, config.seed, "prior", self.device)}

        @torch.no_grad()
        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            parts = torch.from_numpy(pixels).split(AT_ONCE)
            embeddings = [ImageEncoder(encoder).encode(to_images(part.to(self.device))) for part in parts]
            return {"embeddings": torch.cat(embeddings).float().cpu().numpy()}

        images = squares_only(settings.images, "prior")
        self.data = prepared(
            settings.cache, "prior", images, compute, key=fingerprint(settings.image_encoder), on_chunk=on_chunk
        )
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)
        if settings.start is None:
            self._measure(net)
        else:
            self._go_on(net, settings.start)
        self.diffusion = build_diffusion(settings.diffusion, net, trained=True)

    def _config(self, encoder: Any) -> PriorConfig:
        """The network's config; the channels of the embeddings follow from the encoders. Raises InvalidConfig."""
        text: Any = self.text.model.config
        image = encoder.config
        channels = {
            "clip_text": text.hidden_size,
            "clip_text_pooled": text.projection_dim,
            "clip_img": image.projection_dim,
        }
        config = model_config(PriorConfig, {**channels, **self.settings.model}, "prior: model")
        if wrong := [name for name, count in channels.items() if getattr(config, name) != count]:
            raise InvalidConfig(f"prior: model: {wrong[0]} follows from the encoders: leave it out")
        return config

    def _measure(self, net: Prior) -> None:
        """Mean and deviation of the embeddings."""
        embeddings = self.data.take("embeddings", self.data.first(MEASURED), self.device).float()[:, 0]
        net.mean.copy_(embeddings.mean(dim=0))
        net.std.copy_(embeddings.std(dim=0, unbiased=False).clamp(min=1e-4))

    def _go_on(self, net: Prior, path: Path) -> None:
        trained = frozen(path, self.device, "prior")
        if trained.config != net.config:
            raise InvalidConfig(f"prior: start: {path} has other sizes than model: {trained.config}")
        net.load_state_dict(trained.state_dict())

    def batch(self, index: int) -> PriorBatch:
        rows = self.order.rows(index, self.count)
        seed = (self.config.seed, index)
        dropped = np.random.default_rng(seed).random(len(rows)) < self.settings.drop_caption
        texts = batch_texts(self.data, rows, seed, dropped)
        return PriorBatch(self.data.take("embeddings", rows, self.device).float(), *tokenized(self.text, texts))

    def loss(self, batch: PriorBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        net: Any = self.modules["prior"]
        repeats = self.settings.repeats
        with torch.no_grad():
            text = self.text.embed(batch.ids, batch.mask)
        conditions = net.conditions(text.hidden.float(), text.pooled.float()).repeated(repeats)
        x0 = net.normalized(batch.embeddings).repeat_interleave(repeats, dim=0)
        return self.diffusion_loss(lambda x, r: net.denoise(x, r, conditions), x0, generator)
