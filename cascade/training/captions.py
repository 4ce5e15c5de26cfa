"""The text and the image encoder, trained on the captions before Stage C is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import ImageEncoder, TextEncoder
from ..errors import InvalidConfig
from .config import Amount, Count, NewPath, PathFromRoot, Pixels, Settings, Several, TrainingConfig
from .data import ImageSettings, OnChunk, order_of, squares_only, to_images
from .networks import load_encoders, new_clip
from .stage_c import latents_and_small_images
from .task import BaseTask, Modules, derive_seed, pick_device
from .text import tokenize_captions

READER = "reader"


class CaptionsSettings(Settings):
    """`text` and `image` are the transformers configs of the two CLIP towers, of one projection_dim.

    `effnet` and `effnet_size` are those of the training of Stage C that follows: both read one cache.
    `start` is a folder of a text and an image encoder of the same sizes to start from.
    `embedding_noise` is the deviation of noise on the embeddings, relative to theirs.
    With `words`, the loss only covers whether the caption has these words. Features that are hard to recognize are
    learned much faster before the others than together with them.
    """

    images: ImageSettings
    cache: NewPath
    effnet: PathFromRoot
    effnet_size: Pixels = 192
    text: Mapping[str, Any]
    image: Mapping[str, Any]
    start: PathFromRoot | None = None
    reader_width: Count = 256
    embedding_noise: Amount = 0.1
    words: Several[str] = ()


class CaptionsBatch(NamedTuple):
    """ids and mask [B, 1, n]; targets [B, n], the caption's tokens as rows of the vocabulary that is in use; images
    [B, 3, s, s]."""

    ids: Tensor
    mask: Tensor
    targets: Tensor
    images: Tensor


class CaptionsTask(BaseTask):
    """Trains `text_encoder` and `image_encoder` so that one small network reads the caption from either's embedding:
    which tokens it has, and which is at which place.

    Both embeddings then describe an image alike, in one space, with the order of the words: what a CLIP trained on
    millions of images provides for the released Stage C.
    """

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: CaptionsSettings = config.settings
        self.device = pick_device(config.device)
        text = new_clip("text", settings.text, config.seed, self.device)
        image: Any = new_clip("image", settings.image, config.seed, self.device)
        if settings.start is not None:
            load_encoders(settings.start, text, image)
        size = int(image.config.image_size)
        squares_only(settings.images, "captions")
        self.data: Any = latents_and_small_images(settings, config.precision, size, self.device, on_chunk)
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)
        encoder = TextEncoder(text)
        self.ids, self.mask, self.texts = tokenize_captions(encoder, self.data.captions)
        # A token sees only those before it, so that the padding behind the longest caption need not be read.
        length = int(self.mask.sum(dim=-1).max())
        self.ids, self.mask = self.ids[..., :length], self.mask[..., :length]
        used, self.targets = self.ids[:, 0].unique(return_inverse=True)
        self.used = len(used)
        words = [token for word in settings.words for chunk in encoder.chunks(word) for token in chunk]
        self.counted = torch.isin(used, torch.tensor(words, dtype=used.dtype)).to(self.device)
        if words and not self.counted.any():
            raise InvalidConfig(f"captions: words: no caption has {', '.join(settings.words)}")
        channels = int(image.config.projection_dim)
        torch.manual_seed(derive_seed(config.seed, "weights", READER))
        reader = nn.Sequential(
            nn.Linear(channels, settings.reader_width),
            nn.GELU(),
            nn.Linear(settings.reader_width, (length + 1) * self.used),
        ).to(self.device)
        self.modules = {"text_encoder": text, "image_encoder": image, READER: reader}

    def batch(self, index: int) -> CaptionsBatch:
        rows = self.order.rows(index, self.config.batch_size)
        texts = self.texts[torch.from_numpy(rows)]
        images = to_images(self.data.take("small", rows, self.device))
        device = self.device
        return CaptionsBatch(self.ids[texts], self.mask[texts], self.targets[texts].to(device), images)

    def loss(self, batch: CaptionsBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy of the caption's tokens, or of the `words`, read from the text and from the image."""
        text = TextEncoder(self.modules["text_encoder"]).embed(batch.ids, batch.mask).pooled[:, 0]
        image = ImageEncoder(self.modules["image_encoder"]).encode(batch.images)[:, 0]
        from_text, from_image = (self._read(e, batch.targets, generator) for e in (text, image))
        return from_text + from_image, {"from_text": from_text, "from_image": from_image}

    def _read(self, embeddings: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(embeddings.shape, generator=generator, device=embeddings.device)
        spread = embeddings.detach().float().std(dim=0, keepdim=True)
        logits = self.modules[READER](embeddings + self.settings.embedding_noise * spread * noise).float()
        at_places, anywhere = logits[:, self.used :], logits[:, : self.used]
        present = torch.zeros_like(anywhere).scatter_(1, targets, 1.0)
        words = F.binary_cross_entropy_with_logits(anywhere, present, reduction="none").sum(dim=0) / len(targets)
        if self.settings.words:
            return words[self.counted].sum()
        # The position of a word depends on those before it, which an image does not show: an image encoder learns much
        # faster from which words there are than from their positions.
        return F.cross_entropy(at_places.reshape(-1, self.used), targets.flatten()) + words.sum()

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        super().export({name: module for name, module in modules.items() if name != READER}, folder, dtype)
