"""The EfficientNet encoder and the previewer, as one small autoencoder through the latents that Stage C will make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InvalidConfig
from ..images import normalize
from ..models import EffnetConfig, EffnetEncoder, Previewer, PreviewerConfig
from .config import Amount, NewPath, PathFromRoot, Pixels, Settings, Several, TrainingConfig
from .data import ImageSettings, OnChunk, cached, open_images, order_of, resize, squares_only, to_images
from .networks import frozen, model_config, new_network, recalibrate_batch_norm, sheet
from .stage_a import neighbor_error
from .task import BaseTask, Modules, pick_device


class EncoderSettings(Settings):
    """`sizes` are the encoder's input sizes, one chosen at random for each batch (a size listed twice twice as often);
    the previewer's target is the image at a quarter of that. `latent_noise` is the deviation of noise on the latents,
    which themselves have deviation 1. The loss is as Stage A's.

    `detail`, the sizes of a second decoder that makes the image at the encoder's full input size and is dropped
    after training: details that the previewer's small image does not show would not be encoded in the latents.
    `crop` trains on crops of the input in half of the batches. `start` is a folder of an encoder and a previewer to
    go on from.
    """

    images: ImageSettings
    cache: NewPath
    model: Mapping[str, Any]
    previewer: Mapping[str, Any]
    detail: Mapping[str, Any] | None = None
    start: PathFromRoot | None = None
    crop: Pixels | None = None
    sizes: Several[Pixels] = (192,)
    l1: Amount = 1.0
    mse: Amount = 4.0
    edges: Amount = 0.5
    latent_noise: Amount = 0.1


class EncoderTask(BaseTask):
    """Trains `effnet` and `previewer`; the encoder's last norm gives its latents mean 0 and deviation 1."""

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: EncoderSettings = config.settings
        if any(size % 32 for size in (*settings.sizes, settings.crop or 32)):
            raise InvalidConfig(
                f"encoder: sizes {list(settings.sizes)} and crop {settings.crop} must be multiples of 32"
            )
        self.device = pick_device(config.device)
        encoder = EffnetEncoder(model_config(EffnetConfig, settings.model, "encoder: model"))
        previewer = Previewer(model_config(PreviewerConfig, settings.previewer, "encoder: previewer"))
        self.modules = {
            "effnet": new_network(encoder, config.seed, "effnet", self.device),
            "previewer": new_network(previewer, config.seed, "previewer", self.device),
        }
        if settings.start is not None:
            for name, module in self.modules.items():
                module.load_state_dict(frozen(settings.start / f"{name}.safetensors", self.device).state_dict())
        if settings.detail is not None:
            decoder = Previewer(
                model_config(PreviewerConfig, {**settings.detail, "out_channels": 48}, "encoder: detail")
            )
            self.modules["detail"] = new_network(decoder, config.seed, "detail", self.device)
        source = open_images(squares_only(settings.images, "encoder"))
        self.data = cached(settings.cache, "images", source, lambda p: {"images": p}, on_chunk=on_chunk)
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Encoder inputs [B, 3, s, s], normalized, and the images [B, 3, s, s] that they show."""
        random = np.random.default_rng((self.config.seed, index))
        inputs, target = self._whole(index, random)
        crop = self.settings.crop
        if crop is not None and crop < target.shape[-1] and random.random() < 0.5:
            y, x = random.integers(0, target.shape[-1] - crop + 1, 2)
            inputs, target = (images[..., y : y + crop, x : x + crop] for images in (inputs, target))
        return normalize(inputs), target

    def _whole(self, index: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        images = to_images(self.data.take("images", self.order.rows(index, self.config.batch_size), self.device))
        size = int(random.choice(self.settings.sizes))
        target = resize(images, size)
        # Pipelines resize by the nearest pixel, as the released code does, or smoothly: the latents should not care.
        nearest = random.random() < 0.5
        return F.interpolate(images, size=(size, size), mode="nearest") if nearest else target, target

    def loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, target = batch
        latents = self.modules["effnet"](inputs)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        latents = latents + self.settings.latent_noise * noise
        loss, mse = self._error(self.modules["previewer"](latents), resize(target, target.shape[-1] // 4))
        if "detail" in self.modules:
            detail_loss, mse = self._error(F.pixel_shuffle(self.modules["detail"](latents), 4), target)
            loss = loss + detail_loss
        return loss, {"psnr": -10 * torch.log10(mse.detach())}

    def _error(self, made: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the mean squared error in it."""
        settings = self.settings
        error = made.float() - target
        mse = error.square().mean()
        return settings.l1 * error.abs().mean() + settings.mse * mse + settings.edges * neighbor_error(error), mse

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image:
        images = to_images(self.data.take("images", np.arange(min(8, len(self.data.captions))), self.device))
        size = max(set(self.settings.sizes), key=self.settings.sizes.count)
        latents = modules["effnet"](normalize(resize(images, size)))
        rows = [images, modules["previewer"](latents)]
        if "detail" in modules:
            rows.append(F.pixel_shuffle(modules["detail"](latents), 4))
        return sheet(rows)

    def finish(self, modules: Modules) -> None:
        encoder, previewer = modules["effnet"], modules["previewer"]
        inputs = [normalize(self._whole(i, np.random.default_rng((self.config.seed, i)))[0]) for i in range(32)]
        recalibrate_batch_norm(encoder, [lambda x=x: encoder(x) for x in inputs])
        latents = [encoder(x) for x in inputs]
        recalibrate_batch_norm(previewer, [lambda z=z: previewer(z) for z in latents])

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        super().export({name: module for name, module in modules.items() if name != "detail"}, folder, dtype)
