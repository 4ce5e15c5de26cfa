"""A ControlNet for a trained Stage C, which stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..conditioning import TextEncoder
from ..errors import InvalidConfig
from ..models import T2I_ADAPTER, ControlNet, ControlNetConfig
from ..models.blocks import ResBlock
from .backbones import start_backbone
from .beside import EMBEDDING
from .config import Count, NewPath, PathFromRoot, Pixels, Settings, Several, Share, TrainingConfig, Whole
from .data import (
    Cache,
    ImageSettings,
    OnChunk,
    Streamed,
    fingerprint,
    importance,
    order_of,
    prepared,
    scaled,
    to_images,
)
from .filters import COMPUTED, REFERENCE_NAMES, build_filter
from .listing import OnImage
from .lora import SMALL_WIDTH
from .networks import (
    encode_latents,
    for_training,
    frozen,
    model_config,
    new_network,
    recalibrate_batch_norm,
    sheet,
)
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .stage_c import images_in_batch, repeat_conditions
from .task import Modules, pick_device
from .text import batch_texts, text_conditions, tokenized

SHOWN = 8
"""Images on a sheet of samples."""

_FILES = {"controlnet": "controlnet", "t2i_adapter": "t2i"}
"""What names of files begin with."""
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "controlnet": {},
    "t2i_adapter": {name: T2I_ADAPTER.to_dict()[name] for name in ("backbone", "features", "stem", "stages")},
}
"""The sizes that a preset sets."""


class ReferenceSettings(Settings):
    """The lines of a released training's file that describe the hint and the blocks that read it."""

    controlnet_filter: str = "canny"
    controlnet_filter_params: Mapping[str, Any] | None = None
    controlnet_blocks: Several[Whole] | None = None
    controlnet_bottleneck_mode: str | None = None


class ControlNetSettings(Settings):
    """`stage_c` and `text_encoder` are the networks that are to be controlled, `effnet` the encoder of the latents.

    `filter` names the kind of hint, `filter_params` are its own: canny (`resize`), sketch, inpainting (`threshold`,
    `p_outpaint`, `masks`), super_resolution (`scale_factor`), stored (`channels`): images beside the images, and
    identity (`max_faces`, `p_drop`, `p_full`): faces beside them. The reference's names are accepted too, and so is
    `reference` in place of filter, filter_params and model: the `controlnet_*` lines of a released training's file.
    `preset: t2i_adapter` has the sizes of a T2I-Adapter, a tenth of a ControlNet. What it and `model` do not say is as
    released, for this Stage C; see `default_model`.

    `start` is a ControlNet of the same sizes to go on from, trained for this Stage C or for one like it. `backbone` is
    a file whose EfficientNet a new one of the released sizes starts with; see `start_backbone`.

    Hints are made at `hint_size` pixels (for super resolution, of images of that size shrunk). A batch holds
    batch_size / `repeats` images, each at `repeats` noise levels, and reads each hint and caption once.
    """

    images: ImageSettings
    cache: NewPath
    stage_c: PathFromRoot
    text_encoder: PathFromRoot
    effnet: PathFromRoot
    effnet_size: Pixels = 192
    hint_size: Pixels = 192
    start: PathFromRoot | None = None
    backbone: PathFromRoot | None = None
    filter: str | None = None
    filter_params: Mapping[str, Any] = {}
    preset: Literal["controlnet", "t2i_adapter"] = "controlnet"
    model: Mapping[str, Any] = {}
    reference: ReferenceSettings | None = None
    repeats: Count = 1
    drop_caption: Share = 0.05
    diffusion: DiffusionSettings = DiffusionSettings()
    previewer: PathFromRoot | None = None
    sample_steps: Count = 20


class ControlBatch(NamedTuple):
    """latents [U, 16, h, w], hints [U, c, H, W], ids and mask [U, 1, 77]; importance as `importance` gives it."""

    latents: Tensor
    hints: Tensor
    ids: Tensor
    mask: Tensor
    importance: Tensor | None


class ControlNetTask(DiffusionTask):
    """Trains `controlnet_FILTER` on cached latents and hints; its projections begin at zero.

    on_image: called for each file and image that is looked at; an exception in it ends the work.
    problems: lines about images that were left out.
    """

    def __init__(
        self, config: TrainingConfig, on_chunk: OnChunk | None = None, on_image: OnImage | None = None
    ) -> None:
        self.config, self.settings, self.on_image = config, config.settings, on_image
        settings: ControlNetSettings = config.settings
        self.count = images_in_batch(config)
        self.device = pick_device(config.device)
        self.stage_c = for_training(frozen(settings.stage_c, self.device), self.device, config)
        self.text = TextEncoder(frozen(settings.text_encoder, self.device))
        self.previewer = None if settings.previewer is None else frozen(settings.previewer, self.device)
        name, params, model = _described(settings)
        encoder = frozen(settings.effnet, self.device)
        self.filter = build_filter(name, params, settings.hint_size, encoder, settings.effnet_size // 32)
        hint = REFERENCE_NAMES.get(name, name)
        net = ControlNet(replace(self._config(model), hint=hint))
        self.name = f"{_FILES[settings.preset]}_{hint}"
        self.modules = {self.name: new_network(net, config.seed, self.name, self.device)}
        if settings.start is not None:
            _go_on(self.modules[self.name], settings.start, self.device)
        else:
            start_backbone(net, settings.backbone)
        self.data = self._cache(encoder, on_chunk)
        self.problems = self.data.problems
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)
        self.diffusion = build_diffusion(settings.diffusion, self.stage_c)

    def _config(self, model: Mapping[str, Any]) -> ControlNetConfig:
        """The network's config; what is not given follows from Stage C and the filter."""
        width = self.stage_c.config.levels[0].width
        blocks = len(self.stage_c.blocks(ResBlock))
        if set(model) != {"reference"}:
            given = {**_PRESETS[self.settings.preset], **model}
            model = {**default_model(width, blocks, self.filter.channels, given.get("backbone")), **given}
        config = model_config(ControlNetConfig, model, "controlnet: model")
        wrong = {
            f"width is {config.width}, Stage C's {width}": config.width != width,
            f"in_channels is {config.in_channels}, the filter gives {self.filter.channels}": config.in_channels
            != self.filter.channels,
            f"blocks names {max(config.blocks)}, Stage C's last is {blocks - 1}": max(config.blocks) >= blocks,
        }
        if reasons := [reason for reason, applies in wrong.items() if applies]:
            raise InvalidConfig(f"controlnet: model: {'; '.join(reasons)}")
        return config

    def _cache(self, encoder: Any, on_chunk: OnChunk | None) -> Cache | Streamed:
        settings = self.settings

        @torch.no_grad()
        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            latents, hints = [], []
            computes = self.filter.kept == COMPUTED
            for part in np.array_split(pixels, max(1, len(pixels) // 64)):
                images = to_images(torch.from_numpy(part).to(self.device))
                size = scaled(images, settings.images.size, settings.effnet_size)
                latents.append(encode_latents(encoder, images, size))
                hints += [self.filter.compute(images)] if computes else []
            return {"latents": np.concatenate(latents), **({COMPUTED: np.concatenate(hints)} if computes else {})}

        key = f"{fingerprint(settings.effnet)}-{settings.effnet_size}-{self.filter.key}"
        return prepared(
            settings.cache,
            "controlnet",
            settings.images,
            compute,
            key=key,
            on_chunk=on_chunk,
            on_image=self.on_image,
            beside=self.filter.beside,
        )

    def _hints(self, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        """The hints of some images, as they are seen this time."""
        return self.filter.hint(self.data.take(self.filter.kept, rows, self.device), random)

    def batch(self, index: int) -> ControlBatch:
        settings = self.settings
        rows = self.order.rows(index, self.count)
        random = np.random.default_rng((self.config.seed, index))
        dropped = random.random(len(rows)) < settings.drop_caption
        texts = batch_texts(self.data, rows, (self.config.seed, index), dropped)
        latents = self.data.take("latents", rows, self.device).float()
        return ControlBatch(
            latents, self._hints(rows, random), *tokenized(self.text, texts), importance(self.data, rows, latents)
        )

    def loss(self, batch: ControlBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        repeats = self.settings.repeats
        with torch.no_grad():
            text = self.text.embed(batch.ids, batch.mask)
            conditions = repeat_conditions(text_conditions(self.stage_c, text), repeats)
        control = [
            residual if residual is None else residual.repeat_interleave(repeats, dim=0)
            for residual in self.modules[self.name](batch.hints)
        ]
        return self.diffusion_loss(
            lambda x, r: self.stage_c.denoise(x, r, conditions, control=control),
            batch.latents.repeat_interleave(repeats, dim=0),
            generator,
            None if batch.importance is None else batch.importance.repeat_interleave(repeats, dim=0),
        )

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """The hints, and below them the images generated from them and their captions, through the previewer."""
        if self.previewer is None:
            return None
        rows = self.data.first(SHOWN)
        count = len(rows)
        hints = self._hints(rows, np.random.default_rng(0))
        control = modules[self.name](hints)
        cond, uncond = (
            {"conditions": text_conditions(self.stage_c, self.text.encode(texts)), "control": control}
            for texts in (self.data.captions[:count], [""] * count)
        )
        latents = self.sample_stage_c(self.stage_c.denoise, count, cond=cond, uncond=uncond)
        shown = self.previewer(hints) if hints.shape[1] == latents.shape[1] else _as_image(hints)
        return sheet([shown, self.previewer(latents)], labels=self.data.captions[:count])

    def finish(self, modules: Modules) -> None:
        net = modules[self.name]
        recalibrate_batch_norm(net, [lambda i=i: net(self.batch(i).hints) for i in range(32)])


_SMALL: Mapping[str, Mapping[str, Any]] = {
    "effnet": {
        "features": 96,
        "stem": 8,
        "stages": [
            {"fused": True, "expansion": 1, "stride": 2, "width": 16, "depth": 1},
            {"fused": True, "expansion": 2, "stride": 2, "width": 32, "depth": 1},
            {"fused": True, "expansion": 2, "stride": 2, "width": 48, "depth": 1},
            {"fused": False, "expansion": 4, "stride": 2, "width": 64, "depth": 2},
        ],
    },
    "large": {"features": 128, "inside": [256, 96], "depth": 3},
    "simple": {},
}
"""Sizes of each backbone for a small Stage C: those of the tiny cascade's."""
CONTROLLED = 4
"""Blocks at the start and at the end of Stage C that get a residual, as released."""


def default_model(width: int, blocks: int, channels: int, backbone: str | None = None) -> dict[str, Any]:
    """The sizes of a ControlNet for a Stage C of this width and number of residual blocks, and hints of so many
    channels: as released, and for a small Stage C as the tiny cascade's."""
    kind = backbone or {16: "large", 512: "simple"}.get(channels, "effnet")
    apart = blocks // 16
    chosen = [apart * n for n in range(CONTROLLED)] + [blocks - 1 - apart * n for n in reversed(range(CONTROLLED))]
    sizes = _SMALL.get(kind, {}) if width <= SMALL_WIDTH else {}
    numbers = chosen if apart else list(range(blocks))
    return {"width": width, "in_channels": channels, "backbone": kind, "blocks": numbers, **sizes}


def _as_image(hints: Tensor) -> Tensor:
    """Hints [B, c, h, w] as images [B, 3, h, w]: of embeddings, where they are."""
    shown = hints.any(dim=1, keepdim=True).float() if hints.shape[1] == EMBEDDING else hints[:, :3]
    return shown.expand(-1, 3, -1, -1)


def _go_on(net: Any, path: Path, device: torch.device) -> None:
    trained = frozen(path, device)
    if trained.config != net.config:
        raise InvalidConfig(f"controlnet: start: {path} has other sizes than model: {trained.config}")
    net.load_state_dict(trained.state_dict())


def _described(settings: ControlNetSettings) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """Filter, its parameters and the model's section, from the settings or the reference's lines in them."""
    if settings.reference is None:
        if settings.filter is None:
            raise InvalidConfig("controlnet: missing filter (or reference)")
        return settings.filter, settings.filter_params, settings.model
    if settings.filter or settings.filter_params or settings.model:
        raise InvalidConfig("controlnet: reference stands in place of filter, filter_params and model")
    found = settings.reference
    model: dict[str, Any] = {"backbone": found.controlnet_bottleneck_mode or "effnet"}
    if found.controlnet_blocks is not None:
        model["blocks"] = found.controlnet_blocks
    return found.controlnet_filter, found.controlnet_filter_params or {}, model
