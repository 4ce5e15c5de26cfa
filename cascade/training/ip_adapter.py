"""IP-Adapter (Ye et al. 2023): image prompts for a trained Stage C, which stays as it is, as do its encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import StrictBool
from torch import Tensor

from ..conditioning import ImageEncoder, TextEncoder
from ..errors import InvalidConfig
from ..models import AroundAttention, AttentionCall, Conditions, IPAdapter, IPAdapterConfig
from ..models.ip_adapter import KeysValues, attention_widths, image_attention
from .config import Count, NewPath, PathFromRoot, Pixels, Settings, Share, TrainingConfig
from .data import ImageSettings, OnChunk, order_of, to_images
from .networks import for_training, frozen, model_config, new_network, sheet
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .stage_c import images_in_batch, latents_and_small_images, repeat_conditions
from .task import Modules, pick_device
from .text import batch_texts, text_conditions, tokenized

SHOWN = 8
"""Images on a sheet of samples."""


class IPAdapterSettings(Settings):
    """`stage_c`, `text_encoder` and `image_encoder` are the networks that the adapter is for.

    An image is made again from its caption and itself. Where `images` are pairs (`source: edits`), the first image of
    each is shown to the adapter and the second is made, so that it learns to take over less than all of an image.
    Captions are left out of `drop_caption` of the images. There is no share of images that are left out, as in the
    paper: without an image Stage C is as it was, and nothing would be learned.

    With `shown_as` captions leave out what the image shows: it stands in place of all before their last comma (`a
    shape` makes of `a red circle, left`: `a shape, left`). With `imitate` too, the adapter learns to add to attention
    what the rest of the caption would. This has no noise in its targets and no backward pass through Stage C, so it is
    much faster where Stage C knows the captions' words; what these do not say is not learned.

    `model` has the adapter's sizes; `start` is a file of an adapter of the same sizes to go on from. A batch holds
    batch_size / `repeats` images, each at `repeats` noise levels. `effnet_size` is that of a square image's latents.
    """

    images: ImageSettings
    cache: NewPath
    stage_c: PathFromRoot
    text_encoder: PathFromRoot
    image_encoder: PathFromRoot
    effnet: PathFromRoot
    effnet_size: Pixels = 768
    shown_as: str | None = None
    imitate: StrictBool = False
    model: Mapping[str, Any] = {}
    start: PathFromRoot | None = None
    repeats: Count = 1
    drop_caption: Share = 0.05
    diffusion: DiffusionSettings = DiffusionSettings()
    previewer: PathFromRoot | None = None
    sample_steps: Count = 20


class IPAdapterBatch(NamedTuple):
    """latents [U, 16, h, w]; images [U, 3, s, s], as the image encoder reads them; the texts beside the images, and
    the captions."""

    latents: Tensor
    images: Tensor
    texts: Sequence[str]
    captions: Sequence[str]


class IPAdapterTask(DiffusionTask):
    """Trains `ip_adapter` on cached latents and small images; what it adds begins at zero."""

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: IPAdapterSettings = config.settings
        self.count = images_in_batch(config)
        self.device = pick_device(config.device)
        self.stage_c = for_training(frozen(settings.stage_c, self.device, "stage_c"), self.device, config)
        self.text = TextEncoder(frozen(settings.text_encoder, self.device, "text_encoder"))
        self.vision = frozen(settings.image_encoder, self.device, "image_encoder")
        self.previewer = None if settings.previewer is None else frozen(settings.previewer, self.device, "previewer")
        self.modules = {"ip_adapter": self._network()}
        size = int(self.vision.config.image_size)
        self.data = latents_and_small_images(settings, config.precision, size, self.device, on_chunk)
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)
        if settings.imitate and settings.shown_as is None:
            raise InvalidConfig("ip_adapter: imitate needs shown_as, what captions have in place of what is shown")
        self.diffusion = build_diffusion(settings.diffusion, self.stage_c)

    def _network(self) -> Any:
        """The adapter; Stage C's blocks and the encoder's width follow from them. Raises InvalidConfig."""
        settings, encoder = self.settings, int(self.vision.config.hidden_size)
        if given := {"blocks", "encoder"} & set(settings.model):
            raise InvalidConfig(f"ip_adapter: model: {' and '.join(sorted(given))} follow from the files: leave it out")
        sizes = {"encoder": encoder, "blocks": attention_widths(self.stage_c), **settings.model}
        adapter = IPAdapter(model_config(IPAdapterConfig, sizes, "ip_adapter: model"))
        net: Any = new_network(adapter, self.config.seed, "ip_adapter", self.device)
        if settings.start is not None:
            trained = frozen(settings.start, self.device, "ip_adapter")
            if trained.config != net.config:
                raise InvalidConfig(f"ip_adapter: start: {settings.start} has other sizes than model: {trained.config}")
            net.load_state_dict(trained.state_dict())
        return net

    def batch(self, index: int) -> IPAdapterBatch:
        rows, seed = self.order.rows(index, self.count), (self.config.seed, index)
        dropped = np.random.default_rng(seed).random(len(rows)) < self.settings.drop_caption
        captions = batch_texts(self.data, rows, seed, np.zeros(len(rows), bool))
        return IPAdapterBatch(
            self.data.take("latents", rows, self.device).float(),
            to_images(self.data.take("small", rows, self.device)),
            ["" if out else self._beside(caption) for caption, out in zip(captions, dropped, strict=True)],
            captions,
        )

    def _beside(self, caption: str) -> str:
        """What of a caption is read beside the image."""
        shown_as, (_, comma, rest) = self.settings.shown_as, caption.rpartition(",")
        return caption if shown_as is None else f"{shown_as}{comma}{rest if comma else ''}"

    def loss(self, batch: IPAdapterBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        repeats = self.settings.repeats
        with torch.no_grad():
            beside, whole = (self._conditions(texts) for texts in (batch.texts, batch.captions))
            features = ImageEncoder(self.vision).hidden_states(batch.images)
        keys_values = [
            (k.repeat_interleave(repeats, dim=0), v.repeat_interleave(repeats, dim=0))
            for k, v in self.modules["ip_adapter"](features)
        ]
        latents = batch.latents.repeat_interleave(repeats, dim=0)
        if self.settings.imitate:
            return self._imitated(latents, beside, whole, keys_values, generator)
        around = _around(keys_values)
        return self.diffusion_loss(
            lambda x, r: self.stage_c.denoise(x, r, beside, around_attention=around), latents, generator
        )

    def _conditions(self, texts: Sequence[str]) -> Conditions:
        text = self.text.embed(*tokenized(self.text, texts))
        return repeat_conditions(text_conditions(self.stage_c, text), self.settings.repeats)

    def _imitated(
        self, latents: Tensor, beside: Conditions, whole: Conditions, found: KeysValues, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How far what the adapter adds is from what the whole caption adds, the mean of all blocks. In the run of
        Stage C, which has the whole caption, nothing is changed."""
        errors: list[Tensor] = []

        def compared(block: AttentionCall) -> Tensor:
            made, (k, v) = block.plain(), beside.keys_values[block.block]
            own = block.k.shape[1] - whole.keys_values[block.block][0].shape[1]
            k, v = torch.cat([block.k[:, :own], k], dim=1), torch.cat([block.v[:, :own], v], dim=1)
            added = made - block.attend(block.q, k, v, block.heads)
            with torch.enable_grad():
                errors.append(_distance(image_attention(block, *found[block.block]), added))
            return made

        with torch.no_grad():
            _, metrics = self.diffusion_loss(
                lambda x, r: self.stage_c.denoise(x, r, whole, around_attention=compared), latents, generator
            )
        return torch.stack(errors).mean(), metrics

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """The images that are shown, and below them what is made of them and of the captions."""
        if self.previewer is None:
            return None
        rows = self.data.first(SHOWN)
        texts = [self._beside(caption) for caption in self.data.captions[: len(rows)]]
        images = to_images(self.data.take("small", rows, self.device))
        around = _around(modules["ip_adapter"](ImageEncoder(self.vision).hidden_states(images)))
        cond, uncond = (
            {"conditions": text_conditions(self.stage_c, self.text.encode(each)), "around_attention": acting}
            for each, acting in ((texts, around), ([""] * len(texts), None))
        )
        made = self.previewer(self.sample_stage_c(self.stage_c.denoise, len(texts), cond=cond, uncond=uncond))
        shown = torch.nn.functional.interpolate(images, made.shape[-2:], mode="nearest")
        return sheet([shown, made], labels=texts)


def _around(keys_values: KeysValues) -> AroundAttention:
    return lambda block: block.plain() + image_attention(block, *keys_values[block.block])


FLOOR = 0.01
"""Of the mean of all directions: less counts as much."""


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error as a share of what is wanted [B, n, c], of each direction of the channels alike (Mahalanobis).

    What tells one outline from another is little beside what tells colors apart.
    """
    flat = wanted.detach().float().flatten(0, 1)
    moment = flat.T @ flat / len(flat)
    floor = (FLOOR * moment.trace() / len(moment)).clamp_min(1e-12)
    factor = torch.linalg.cholesky(moment + floor * torch.eye(len(moment), device=moment.device))
    error = (found - wanted).float().flatten(0, 1)
    return torch.linalg.solve_triangular(factor, error.T, upper=False).square().mean()
