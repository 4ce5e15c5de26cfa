"""Stage C with its text and image encoders: the EfficientNet encoder's latents from captions and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import StrictBool
from torch import Tensor

from ..conditioning import ImageEncoder, TextEncoder
from ..errors import InvalidConfig
from ..models import Conditions, StageC, StageCConfig
from .config import Count, NewPath, PathFromRoot, Pixels, Settings, Several, Share, TrainingConfig
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
    to_images,
    to_pixels,
)
from .listing import OnImage
from .networks import (
    encode_latents,
    for_training,
    frozen,
    grown,
    load_encoders,
    model_config,
    new_clip,
    new_network,
    sheet,
    to_finetune,
)
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .task import Modules, pick_device
from .text import batch_texts, prompts_for_samples, text_conditions, tokenized


class StageCSettings(Settings):
    """Each of the three networks is new, or comes from a file. New ones have the sizes of `model`, and of `text` and
    `image`, the transformers configs of the two CLIP towers; the files are `start`, `text_encoder` and `image_encoder`.
    A tower that comes from a file and is not trained is not exported.

    Where `images` are pairs (`source: edits`), the image encoder sees the first image of each and Stage C learns the
    second: what the caption does not say is taken from the first.
    The image embedding is given for `keep_image` of the images and zeros for the others. Captions are left out with
    probability `drop_caption`, with an image embedding `drop_caption_with_image`: there the image alone must do.
    `encoders` is a folder of a text and an image encoder of the same sizes to start from, `start` a Stage C whose
    filters may be smaller than those of `model`. Without `train_text_encoder` and `train_image_encoder` these stay as
    they are.
    A batch holds batch_size / `repeats` images, each at `repeats` noise levels, and reads each caption once.
    Captions longer than 75 tokens are read in up to `caption_chunks` parts. With `size_conditions` the network is told
    how much an image was enlarged (`sca`) and which share of it is cut away (`crp`): 0 for what samples ask for.
    `effnet_size` is that of a square image's latents; images of other shapes are scaled as much.
    """

    images: ImageSettings
    cache: NewPath
    effnet: PathFromRoot
    effnet_size: Pixels = 192
    model: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None
    image: Mapping[str, Any] | None = None
    text_encoder: PathFromRoot | None = None
    image_encoder: PathFromRoot | None = None
    encoders: PathFromRoot | None = None
    train_text_encoder: StrictBool = True
    train_image_encoder: StrictBool = True
    start: PathFromRoot | None = None
    repeats: Count = 1
    drop_caption: Share = 0.05
    drop_caption_with_image: Share = 0.05
    caption_chunks: Count = 1
    size_conditions: StrictBool = False
    keep_image: Share = 0.1
    diffusion: DiffusionSettings = DiffusionSettings()
    previewer: PathFromRoot | None = None
    sample_prompts: Several[str] | None = None
    sample_steps: Count = 20


class StageCBatch(NamedTuple):
    """latents [U, 16, h, w]; ids and mask [U, n, 77]; images [K, 3, s, s] for the rows `with_image` [K] of the U;
    extents [U, 2], sca and crp; importance as `importance` gives it."""

    latents: Tensor
    ids: Tensor
    mask: Tensor
    images: Tensor
    with_image: Tensor
    extents: Tensor
    importance: Tensor | None


class StageCTask(DiffusionTask):
    """Trains `stage_c`, and `text_encoder` and `image_encoder` with it, on cached latents.

    on_image: called for each file and image that is looked at; an exception in it ends the work.
    problems: lines about images that were left out.
    """

    def __init__(
        self, config: TrainingConfig, on_chunk: OnChunk | None = None, on_image: OnImage | None = None
    ) -> None:
        self.config, self.settings = config, config.settings
        settings: StageCSettings = config.settings
        self.count = images_in_batch(config)
        self.device = pick_device(config.device)
        self.modules = {"stage_c": self._network()}
        self.text_encoder, self.image_encoder = self._tower("text"), self._tower("image")
        self._check_widths()
        if settings.encoders is not None:
            load_encoders(settings.encoders, self.text_encoder, self.image_encoder)
        self.previewer = None if settings.previewer is None else frozen(settings.previewer, self.device)
        size = int(self.image_encoder.config.image_size)
        self.data = latents_and_small_images(settings, config.precision, size, self.device, on_chunk, on_image)
        self.problems = self.data.problems
        self.seen = [self.data.source]
        self.prompts = prompts_for_samples(settings.sample_prompts, self.data.captions)
        self.order = order_of(self.data, config)
        self.diffusion = build_diffusion(settings.diffusion, self.modules["stage_c"], trained=True)

    def _network(self) -> Any:
        settings, config = self.settings, self.config
        if settings.model is None:
            return to_finetune(settings.start, "stage_c", self.device, config)
        net = for_training(StageC(model_config(StageCConfig, settings.model, "stage_c: model")), self.device, config)
        new_network(net, config.seed, "stage_c", self.device)
        if settings.start is not None:
            start = frozen(settings.start, self.device)
            net.load_state_dict(grown(start.state_dict(), net))
            net.config = replace(net.config, process=start.config.process)
        return net

    def _tower(self, kind: str) -> Any:
        """The text encoder ("text") or the image encoder ("image"); among the modules if it is new or trained."""
        settings, name = self.settings, f"{kind}_encoder"
        section, path, trained = getattr(settings, kind), getattr(settings, name), getattr(settings, f"train_{name}")
        if (section is None) == (path is None):
            raise InvalidConfig(f"stage_c: give either {kind} (the sizes of a new encoder) or {name} (a file)")
        if path is None:
            tower: Any = new_clip(kind, section, self.config.seed, self.device)
        else:
            halves = self.config.precision == "bfloat16" and not trained
            tower = frozen(path, self.device, name, torch.bfloat16 if halves else torch.float32)
        if self.config.gradient_checkpointing and trained:
            tower.gradient_checkpointing_enable()
        if path is None or trained:
            self.modules[name] = tower
        return tower.requires_grad_(trained)

    def _check_widths(self) -> None:
        net: Any = self.modules["stage_c"].config
        text, image = self.text_encoder.config, self.image_encoder.config
        found = {
            "clip_text": text.hidden_size,
            "clip_text_pooled": text.projection_dim,
            "clip_img": image.projection_dim,
        }
        wrong = [
            f"{name} is {getattr(net, name)}, the encoder gives {n}"
            for name, n in found.items()
            if getattr(net, name) != n
        ]
        if wrong:
            raise InvalidConfig(f"stage_c: model: {'; '.join(wrong)}")

    def batch(self, index: int) -> StageCBatch:
        settings = self.settings
        rows = self.order.rows(index, self.count)
        random = np.random.default_rng((self.config.seed, index))
        with_image = random.random(len(rows)) < settings.keep_image
        drop = np.where(with_image, settings.drop_caption_with_image, settings.drop_caption)
        dropped = random.random(len(rows)) < drop
        texts = batch_texts(self.data, rows, (self.config.seed, index), dropped)
        latents = self.data.take("latents", rows, self.device).float()
        return StageCBatch(
            latents,
            *tokenized(TextEncoder(self.text_encoder), texts, settings.caption_chunks),
            to_images(self.data.take("small", rows[with_image], self.device)),
            torch.from_numpy(np.flatnonzero(with_image)).to(self.device),
            extents(self.data, rows, self.device),
            importance(self.data, rows, latents),
        )

    def loss(self, batch: StageCBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        net: Any = self.modules["stage_c"]
        repeats = self.settings.repeats
        text = TextEncoder(self.text_encoder).embed(batch.ids, batch.mask)
        images = text.hidden.new_zeros(len(batch.latents), 1, net.config.clip_img)
        if len(batch.with_image):
            embeddings = ImageEncoder(self.image_encoder).encode(batch.images)
            images = images.index_copy(0, batch.with_image, embeddings.to(images.dtype))
        sca, crp = batch.extents.unbind(1) if self.settings.size_conditions else (None, None)
        conditions = repeat_conditions(net.conditions(text.hidden, text.pooled, images, sca=sca, crp=crp), repeats)
        return self.diffusion_loss(
            lambda x, r: net.denoise(x, r, conditions),
            batch.latents.repeat_interleave(repeats, dim=0),
            generator,
            None if batch.importance is None else batch.importance.repeat_interleave(repeats, dim=0),
        )

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """The prompts, at the released settings, through the previewer."""
        if self.previewer is None:
            return None
        net: Any = modules["stage_c"]
        encoder = TextEncoder(modules.get("text_encoder", self.text_encoder))
        prompts = self.prompts
        # A text encoder that is not trained may be in halves, as Stage C then has to calculate.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.text_encoder.dtype == torch.bfloat16):
            cond, uncond = (
                {"conditions": text_conditions(net, encoder.encode(texts))} for texts in (prompts, ("",) * len(prompts))
            )
            latents = self.sample_stage_c(net.denoise, len(prompts), cond=cond, uncond=uncond)
        return sheet([self.previewer(latents.float())], labels=prompts)


class LatentSettings(Protocol):
    """The settings that `latents_and_small_images` reads."""

    @property
    def images(self) -> ImageSettings: ...
    @property
    def cache(self) -> Path: ...
    @property
    def effnet(self) -> Path: ...
    @property
    def effnet_size(self) -> int: ...


def latents_and_small_images(
    settings: LatentSettings,
    precision: str,
    image_size: int,
    device: torch.device,
    on_chunk: OnChunk | None,
    on_image: OnImage | None = None,
) -> Cache | Streamed:
    """`latents` [N, 16, h, w] of the EfficientNet encoder and `small` [N, image_size, image_size, 3], uint8; of pairs,
    these are the second and the first image."""
    encoder, side = frozen(settings.effnet, device), settings.images.size

    @torch.no_grad()
    @torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
        latents, small = [], []
        for part in np.array_split(pixels, max(1, len(pixels) // 64)):
            images = to_images(torch.from_numpy(part).to(device))
            shown, images = images.chunk(2, dim=-1) if images.shape[-2:] == (side, 2 * side) else (images, images)
            size = scaled(images, side, settings.effnet_size)
            latents.append(encode_latents(encoder, images, size))
            # As CLIP's preprocessing shrinks: on the small image it then finds nothing left to do.
            middle = _square(shown)
            small.append(to_pixels(F.interpolate(middle, (image_size, image_size), mode="bicubic", antialias=True)))
        return {"latents": np.concatenate(latents), "small": np.concatenate(small)}

    key = f"{precision}-{fingerprint(settings.effnet)}-{settings.effnet_size}-{image_size}"
    return prepared(settings.cache, "stage_c", settings.images, compute, key=key, on_chunk=on_chunk, on_image=on_image)


def _square(images: Tensor) -> Tensor:
    """The middle of images [B, 3, H, W] as [B, 3, s, s]."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def images_in_batch(config: TrainingConfig) -> int:
    """How many images a batch holds, each at `repeats` noise levels. Raises InvalidConfig."""
    repeats = config.settings.repeats
    if config.batch_size % repeats:
        raise InvalidConfig(f"{config.task}: repeats {repeats} must divide batch_size {config.batch_size}")
    return config.batch_size // repeats


def repeat_conditions(conditions: Conditions, repeats: int) -> Conditions:
    """Every image's conditions `repeats` times, one after the other."""
    if repeats == 1:
        return conditions
    return Conditions(
        keys_values=tuple(
            (k.repeat_interleave(repeats, dim=0), v.repeat_interleave(repeats, dim=0))
            for k, v in conditions.keys_values
        ),
        modulations=tuple(m.repeat_interleave(repeats, dim=0) for m in conditions.modulations),
        spatial=None if conditions.spatial is None else conditions.spatial.repeat_interleave(repeats, dim=0),
    )
