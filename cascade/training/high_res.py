"""High-res guides for a trained Stage C, which stays as it is: from two sizes of the same image (Ren et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..conditioning import TextEncoder
from ..errors import InvalidConfig
from ..models import Conditions, HighResGuideConfig, HighResGuides
from ..models.high_res import POSITIONS, FeatureRecorder, Features, GuidedRun
from ..pipelines.high_res import SOURCE_TIME
from .config import Count, NewPath, PathFromRoot, Pixels, Settings, Several, Share, TrainingConfig
from .data import Cache, ImageSettings, OnChunk, cached, fingerprint, open_images, order_of, squares_only, to_images
from .networks import encode_latents, for_training, frozen, model_config, new_network, sheet
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .stage_c import images_in_batch, repeat_conditions
from .task import Modules, pick_device
from .text import text_conditions, tokenize_captions

LOW = "latents"
SHOWN = 8
"""Images on a sheet of samples."""
AT_ONCE = 4
"""Images that go through the encoder together: they are large."""


class HighResSettings(Settings):
    """`stage_c` and `text_encoder` are the networks that are to be guided, `effnet` the encoder of the latents.

    The low resolution is `effnet_size` pixels at the encoder (32 to a position of the latents), the high ones are
    `high_sizes`, one chosen at random for each batch (a size listed twice twice as often); images should have 4 / 3 of
    the largest. `start` is a file of guides of the same sizes to go on from.

    A batch holds batch_size / `repeats` images, each at `repeats` noise levels, and reads the low resolution once.
    Without captions in `drop_caption` of the images; what the guides read is always made with the caption, as in a run.
    """

    images: ImageSettings
    cache: NewPath
    stage_c: PathFromRoot
    text_encoder: PathFromRoot
    effnet: PathFromRoot
    effnet_size: Pixels = 768
    high_sizes: Several[Pixels]
    start: PathFromRoot | None = None
    model: Mapping[str, Any] = {}
    repeats: Count = 1
    drop_caption: Share = 0.05
    diffusion: DiffusionSettings = DiffusionSettings()
    previewer: PathFromRoot | None = None
    sample_steps: Count = 20


class HighResBatch(NamedTuple):
    """low [U, 16, h, w], high [U, 16, H, W], ids and mask [U, 1, 77], and which captions [U] are left out."""

    low: Tensor
    high: Tensor
    ids: Tensor
    mask: Tensor
    dropped: Tensor


class HighResTask(DiffusionTask):
    """Trains `high_res_guides` on cached latents of each image at every size; what they add begins at zero.

    The released training spends half of its first steps on the low resolution alone; with a Stage C that stays as it
    is, these steps would change nothing, and are left out.
    """

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: HighResSettings = config.settings
        self.count = images_in_batch(config)
        self.device = pick_device(config.device)
        self.stage_c = for_training(frozen(settings.stage_c, self.device), self.device, config)
        self.text = TextEncoder(frozen(settings.text_encoder, self.device))
        self.previewer = None if settings.previewer is None else frozen(settings.previewer, self.device)
        _check_sizes(settings)
        guides = new_network(HighResGuides(self._config()), config.seed, "high_res_guides", self.device)
        self.modules = {"high_res_guides": guides}
        if settings.start is not None:
            self._go_on(settings.start)
        self.data = self._cache(on_chunk)
        self.seen = [self.data.source]
        self.order = order_of(self.data, config)
        self.ids, self.mask, self.texts = tokenize_captions(self.text, self.data.captions)
        self.diffusion = build_diffusion(settings.diffusion, self.stage_c)

    def _config(self) -> HighResGuideConfig:
        """The guides' config; Stage C's width and number of levels follow from it where not given."""
        found = {"stage_c_width": self.stage_c.config.levels[0].width, "levels": len(self.stage_c.places().down)}
        model = self.settings.model
        config = model_config(
            HighResGuideConfig, model if set(model) == {"reference"} else {**found, **model}, "high_res_guides: model"
        )
        if wrong := [name for name, value in found.items() if getattr(config, name) != value]:
            reasons = "; ".join(f"{name} is {getattr(config, name)}, Stage C's is {found[name]}" for name in wrong)
            raise InvalidConfig(f"high_res_guides: model: {reasons}")
        return config

    def _go_on(self, path: Path) -> None:
        trained, net = frozen(path, self.device), self.modules["high_res_guides"]
        if trained.config != net.config:
            raise InvalidConfig(f"high_res_guides: start: {path} has other sizes than model: {trained.config}")
        net.load_state_dict(trained.state_dict())

    def _cache(self, on_chunk: OnChunk | None) -> Cache:
        settings = self.settings
        encoder = frozen(settings.effnet, self.device)
        sizes = {LOW: settings.effnet_size, **{_high(size): size for size in sorted(set(settings.high_sizes))}}

        @torch.no_grad()
        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            made: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
            for start in range(0, len(pixels), AT_ONCE):
                images = to_images(torch.from_numpy(pixels[start : start + AT_ONCE]).to(self.device))
                for name, size in sizes.items():
                    made[name].append(encode_latents(encoder, images, size))
            return {name: np.concatenate(parts) for name, parts in made.items()}

        key = f"{fingerprint(settings.effnet)}-{'-'.join(map(str, sizes.values()))}"
        source = open_images(squares_only(settings.images, "high_res_guides"))
        return cached(settings.cache, "high_res_guides", source, compute, key=key, on_chunk=on_chunk)

    def batch(self, index: int) -> HighResBatch:
        settings = self.settings
        rows = self.order.rows(index, self.count)
        random = np.random.default_rng((self.config.seed, index))
        size = int(random.choice(settings.high_sizes))
        tokens = self.texts[torch.from_numpy(rows)]
        return HighResBatch(
            self.data.take(LOW, rows, self.device).float(),
            self.data.take(_high(size), rows, self.device).float(),
            self.ids[tokens],
            self.mask[tokens],
            torch.from_numpy(random.random(len(rows)) < settings.drop_caption).to(self.device),
        )

    def loss(self, batch: HighResBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        repeats = self.settings.repeats
        with torch.no_grad():
            text = self.text.embed(batch.ids, batch.mask)
            conditions = text_conditions(self.stage_c, text)
            features = self._features(batch.low, conditions, generator)
            if batch.dropped.any():
                conditions = _mixed(conditions, self._without_text(len(batch.low)), batch.dropped)
            conditions = repeat_conditions(conditions, repeats)
            features = Features(*(tuple(x.repeat_interleave(repeats, dim=0) for x in path) for path in features))
        run = self._run(self.modules, features)
        return self.diffusion_loss(
            lambda x, r: self.stage_c.denoise(x, r, conditions, after_attention=run.after_attention(r)),
            batch.high.repeat_interleave(repeats, dim=0),
            generator,
        )

    def _features(self, low: Tensor, conditions: Conditions, generator: torch.Generator) -> Features:
        """Of the low resolution with a little noise, as in an image to image run."""
        diffusion = self.diffusion
        epsilon = torch.randn(low.shape, generator=generator, device=low.device)
        log_snr = diffusion.schedule(torch.full((len(low),), SOURCE_TIME, device=low.device))
        recorder = FeatureRecorder(self.stage_c.places())
        self.stage_c.denoise(
            diffusion.noised(low, epsilon, log_snr),
            diffusion.noise_condition(log_snr),
            conditions,
            after_attention=recorder.after_attention,
        )
        return recorder.features()

    def _without_text(self, count: int) -> Conditions:
        return text_conditions(self.stage_c, self.text.encode([""] * count))

    def _run(self, modules: Modules, features: Features) -> GuidedRun:
        guides: Any = modules["high_res_guides"]
        return GuidedRun(guides, features, self.stage_c.places())

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """The images at the low resolution, and below them what the guides make of them at the largest."""
        if self.previewer is None:
            return None
        count = min(SHOWN, len(self.data.captions))
        low = self.data.take(LOW, np.arange(count), self.device).float()
        cond, uncond = (
            {"conditions": text_conditions(self.stage_c, self.text.encode(texts))}
            for texts in (self.data.captions[:count], [""] * count)
        )
        run = self._run(modules, self._features(low, cond["conditions"], generator))
        latents = self.sample_stage_c(
            lambda x, r, conditions: self.stage_c.denoise(x, r, conditions, after_attention=run.after_attention(r)),
            count,
            cond=cond,
            uncond=uncond,
            cached=_high(max(self.settings.high_sizes)),
        )
        large = self.previewer(latents)
        small = F.interpolate(self.previewer(low), large.shape[-2:], mode="nearest")
        return sheet([small, large], labels=self.data.captions[:count])


def _high(size: int) -> str:
    return f"latents_{size}"


def _mixed(conditions: Conditions, others: Conditions, rows: Tensor) -> Conditions:
    """Conditions with some rows [B] of others."""

    def choose(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (ours.dim() - 1)), theirs, ours)

    return Conditions(
        keys_values=tuple(
            (choose(k, other_k), choose(v, other_v))
            for (k, v), (other_k, other_v) in zip(conditions.keys_values, others.keys_values, strict=True)
        ),
        modulations=tuple(map(choose, conditions.modulations, others.modulations)),
        spatial=None,
    )


def _check_sizes(settings: HighResSettings) -> None:
    wrong = [size for size in (settings.effnet_size, *settings.high_sizes) if size % 32]
    if wrong:
        raise InvalidConfig(f"high_res_guides: {wrong[0]} is not a multiple of 32, the encoder's pixels of a position")
    if (settings.effnet_size // 32) ** 2 > POSITIONS:
        raise InvalidConfig(
            f"high_res_guides: effnet_size {settings.effnet_size} gives {(settings.effnet_size // 32) ** 2} positions; "
            f"guides read at most {POSITIONS}"
        )
