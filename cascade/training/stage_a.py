"""Stage A as an autoencoder of crops: images to latents of unit variance and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InvalidConfig
from ..models import StageA, StageAConfig
from .config import Amount, NewPath, Pixels, Settings, TrainingConfig
from .data import ImageSettings, OnChunk, cached, open_images, order_of, squares_only, to_images
from .networks import model_config, new_network, recalibrate_batch_norm, sheet
from .task import BaseTask, Modules, pick_device


class StageASettings(Settings):
    """The loss is l1 * |error| + mse * error^2 + edges * |error of the differences between neighbors|.

    `latent_noise` is the deviation of noise added to the latents: it makes the decoder robust to errors of Stage B.
    """

    images: ImageSettings
    cache: NewPath
    model: Mapping[str, Any]
    crop: Pixels = 128
    l1: Amount = 1.0
    mse: Amount = 4.0
    edges: Amount = 0.5
    latent_noise: Amount = 0.02


class StageATask(BaseTask):
    """Trains `stage_a`. The latents are not quantized, as they are not when the released Stage A is used."""

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: StageASettings = config.settings
        if settings.crop > settings.images.size or settings.crop % 4:
            raise InvalidConfig(f"stage_a: crop {settings.crop} must be a multiple of 4 and at most the images' size")
        self.device = pick_device(config.device)
        net = StageA(model_config(StageAConfig, settings.model, "stage_a: model"))
        new_network(net, config.seed, "stage_a", self.device)
        fix_latent_scale(net)
        self.modules = {"stage_a": net}
        source = open_images(squares_only(settings.images, "stage_a"))
        self.data = cached(settings.cache, "images", source, lambda p: {"images": p}, on_chunk=on_chunk)
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)

    def batch(self, index: int) -> Tensor:
        """Crops [B, 3, crop, crop]."""
        size, crop = self.settings.images.size, self.settings.crop
        rows = self.order.rows(index, self.config.batch_size)
        corners = np.random.default_rng((self.config.seed, index)).integers(0, size - crop + 1, (len(rows), 2))
        images = self.data.rows("images", rows)
        crops = [image[y : y + crop, x : x + crop] for image, (y, x) in zip(images, corners, strict=True)]
        return to_images(torch.from_numpy(np.stack(crops)).to(self.device))

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        net: Any = self.modules["stage_a"]
        settings = self.settings
        latents = net.encode(batch)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        error = net.decode(latents + settings.latent_noise * noise).float() - batch
        mse = error.square().mean()
        loss = settings.l1 * error.abs().mean() + settings.mse * mse + settings.edges * neighbor_error(error)
        return loss, {"psnr": -10 * torch.log10(mse.detach())}

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image:
        images = to_images(self.data.take("images", np.arange(min(8, len(self.data.captions))), self.device))
        return sheet([images, modules["stage_a"](images)])

    def finish(self, modules: Modules) -> None:
        net: Any = modules["stage_a"]
        recalibrate_batch_norm(net, [lambda i=i: net.encode(self.batch(i)) for i in range(32)])


def neighbor_error(error: Tensor) -> Tensor:
    """The mean absolute difference of the error [B, c, h, w] between neighbors: edges that are soft or moved."""
    return F.l1_loss(error[..., 1:], error[..., :-1]) + F.l1_loss(error[..., 1:, :], error[..., :-1, :])


def fix_latent_scale(net: StageA) -> None:
    """Hold the gain of the last norm so that the latents have mean 0 and deviation 1, which is what Stage B noises."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, net.config.scale_factor)
            torch.nn.init.zeros_(module.bias)
            module.requires_grad_(False)
