"""Following instructions about an image (after Brooks et al. 2023, "InstructPix2Pix"), for a trained Stage C.

A ControlNet reads the latents of the image before the edit, and a LoRA of Stage C learns with it to take the prompt as
an instruction. Stage C itself stays as it is. The paper widens the network's input in place of this; a residual for the
first block does the same, those for later blocks more, and neither the files nor the network need another form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from ..adapters import InstructNetwork, save_instruct
from ..conditioning import TextEncoder
from ..errors import InvalidConfig
from ..models import ControlNet, ControlNetConfig
from .config import Count, NewPath, Number, PathFromRoot, Pixels, Settings, Several, Share, TrainingConfig, Whole
from .data import Cache, ImageSettings, OnChunk, cached, fingerprint, open_images, order_of, squares_only, to_images
from .folders import FolderImages
from .lora import AT_ONCE, file_name
from .lora_layers import Adapter, Wiring
from .networks import encode_latents, for_training, frozen, model_config, new_network, sheet
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .stage_c import images_in_batch, repeat_conditions
from .task import Modules, pick_device
from .text import text_conditions, tokenize_captions

LATENT_CHANNELS = 16
SHOWN = 8
"""Edits on a sheet of samples."""


class InstructSettings(Settings):
    """`images` are edits: pairs of images before and after, with an instruction each (`source: edits` for those of a
    folder). `stage_c` and `text_encoder` are the networks that are to follow instructions.

    `model` has the sizes of the ControlNet, `target_modules`, `rank` and `alpha` are those of the LoRA. For
    `drop_instruction` of the edits the instruction is left out, for `drop_source` the image, each independently, so
    that both can be guided by. A batch holds batch_size / `repeats` edits, each at `repeats` noise levels. `name` is
    the file's.
    """

    images: ImageSettings
    cache: NewPath
    stage_c: PathFromRoot
    text_encoder: PathFromRoot
    effnet: PathFromRoot
    effnet_size: Pixels = 192
    model: Mapping[str, Any] = {}
    target_modules: Several[str] = ("attention",)
    rank: Annotated[Whole, Field(ge=1, le=8192)] = 16
    alpha: Annotated[Number, Field(ge=1e-6)] | None = None
    repeats: Count = 1
    drop_instruction: Share = 0.1
    drop_source: Share = 0.1
    diffusion: DiffusionSettings = DiffusionSettings()
    previewer: PathFromRoot | None = None
    sample_steps: Count = 20
    name: Annotated[str, AfterValidator(file_name)] = "instruct"


class InstructBatch(NamedTuple):
    """latents, sources [U, 16, h, w] after and before; shown [U] whether the source is; ids and mask [U, 1, 77]."""

    latents: Tensor
    sources: Tensor
    shown: Tensor
    ids: Tensor
    mask: Tensor


class InstructTask(DiffusionTask):
    """Trains a ControlNet and an `Adapter` on cached latents of edits."""

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: InstructSettings = config.settings
        self.count = images_in_batch(config)
        self.device = pick_device(config.device)
        self.stage_c = for_training(frozen(settings.stage_c, self.device, "stage_c"), self.device, config)
        self.text = TextEncoder(frozen(settings.text_encoder, self.device, "text_encoder"))
        self.previewer = None if settings.previewer is None else frozen(settings.previewer, self.device, "previewer")
        net = ControlNet(self._config())
        adapter = Adapter()
        self.wiring = Wiring(adapter)
        alpha = settings.rank if settings.alpha is None else settings.alpha
        options: dict[str, Any] = {"rank": settings.rank, "alpha": alpha, "dropout": 0.0, "dora": False}
        self.wiring.add_changes(self.stage_c, "stage_c", settings.target_modules, seed=config.seed, **options)
        self.modules: dict[str, nn.Module] = {
            "controlnet": new_network(net, config.seed, "controlnet", self.device),
            "adapter": adapter.to(self.device),
        }
        self.data = self._latents(on_chunk)
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)
        self.ids, self.mask, self.texts = tokenize_captions(self.text, [*self.data.captions, ""])
        self.diffusion = build_diffusion(settings.diffusion, self.stage_c)

    def _config(self) -> ControlNetConfig:
        """The ControlNet's config; its width and channels follow from Stage C. Raises InvalidConfig."""
        width = self.stage_c.config.levels[0].width
        given = {"width": width, "in_channels": LATENT_CHANNELS, "backbone": "large", **self.settings.model}
        config = model_config(ControlNetConfig, given, "instruct: model")
        if config.width != width or config.in_channels != LATENT_CHANNELS or config.reads_images:
            raise InvalidConfig(
                f"instruct: model: it reads latents of {LATENT_CHANNELS} channels (backbone large or simple) for a "
                f"Stage C of width {width}; found {config.backbone}, {config.in_channels} channels, {config.width}"
            )
        return config

    def _latents(self, on_chunk: OnChunk | None) -> Cache:
        """`sources` and `latents` [N, 16, h, w]: of the images before and after."""
        settings = self.settings
        source = open_images(squares_only(settings.images, "instruct"))
        if isinstance(source, FolderImages) or source.read(0, 1)[0].shape[1:3] != (source.size, 2 * source.size):
            raise InvalidConfig(
                f"instruct: images: the source {settings.images.source} has single images; edits are needed, an image "
                "before and one after each (source: edits)"
            )
        encoder = frozen(settings.effnet, self.device, "effnet")

        @torch.no_grad()
        def encoded(pixels: np.ndarray) -> np.ndarray:
            parts = np.array_split(np.ascontiguousarray(pixels), -(-len(pixels) // AT_ONCE))
            images = (to_images(torch.from_numpy(part).to(self.device)) for part in parts)
            return np.concatenate([encode_latents(encoder, part, settings.effnet_size) for part in images])

        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            before, after = np.split(pixels, 2, axis=2)
            return {"sources": encoded(before), "latents": encoded(after)}

        key = f"{fingerprint(settings.effnet)}-{settings.effnet_size}"
        return cached(settings.cache, "instruct", source, compute, key=key, on_chunk=on_chunk)

    def batch(self, index: int) -> InstructBatch:
        settings = self.settings
        rows = self.order.rows(index, self.count)
        random = np.random.default_rng((self.config.seed, index)).random((2, len(rows)))
        texts = np.where(random[0] < settings.drop_instruction, len(self.texts) - 1, rows)
        tokens = self.texts[torch.from_numpy(texts)]
        return InstructBatch(
            self.data.take("latents", rows, self.device).float(),
            self.data.take("sources", rows, self.device).float(),
            torch.from_numpy(random[1] >= settings.drop_source).to(self.device),
            self.ids[tokens],
            self.mask[tokens],
        )

    def loss(self, batch: InstructBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        repeats = self.settings.repeats
        with torch.no_grad():
            text = self.text.embed(batch.ids, batch.mask)
        conditions = repeat_conditions(text_conditions(self.stage_c, text), repeats)
        shown = batch.shown[:, None, None, None]
        control = [
            residual if residual is None else (residual * shown).repeat_interleave(repeats, dim=0)
            for residual in self.modules["controlnet"](batch.sources)
        ]
        return self.diffusion_loss(
            lambda x, r: self.stage_c.denoise(x, r, conditions, control=control),
            batch.latents.repeat_interleave(repeats, dim=0),
            generator,
        )

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """The images before, what the instructions make of them, and below them those after."""
        if self.previewer is None:
            return None
        count = min(SHOWN, len(self.data.captions))
        rows, texts = np.arange(count), self.data.captions[:count]
        before, after = (self.data.take(name, rows, self.device).float() for name in ("sources", "latents"))
        control = modules["controlnet"](before)
        with self.wiring.showing(modules["adapter"]):
            cond, uncond = (
                {"conditions": text_conditions(self.stage_c, self.text.encode(each)), "control": control}
                for each in (texts, [""] * count)
            )
            made = self.sample_stage_c(self.stage_c.denoise, count, cond=cond, uncond=uncond)
        return sheet([self.previewer(latents) for latents in (before, made, after)], labels=texts)

    def _network(self, modules: Modules) -> InstructNetwork:
        net: Any = modules["controlnet"]
        adapter: Any = modules["adapter"]
        names = ("steps", "batch_size", "accumulation", "learning_rate", "seed", "precision")
        training = {name: getattr(self.config, name) for name in names}
        return InstructNetwork(net, adapter.to_lora({**training, "images": len(self.data.captions)}))

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        save_instruct(self._network(modules), folder / f"{self.settings.name}.safetensors", dtype=dtype)
