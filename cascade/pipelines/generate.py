"""Prompts and images to images: text, Stage C, Stage B, Stage A, one network in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditioning import ImageEncoder, StageBInputs, StageCInputs, TextEmbedding, combine_images
from ..images import as_mask, as_rgb, composite, fit, mask_of_latent, resize_mask
from ..models import StageB, StageC
from .control import Control
from .networks import Parts
from .sizes import LatentSizes, latent_sizes
from .stages import (
    STAGE_B_SETTINGS,
    STAGE_C_SETTINGS,
    OnStep,
    SamplingSettings,
    Start,
    Tiles,
    decode,
    encode_prompts,
    encode_stage_a,
    encode_stage_c,
    sample_stage_b,
    sample_stage_c,
)

OnProgress = Callable[[str, int, int, Tensor], Any]
"""Called after step i (from 0) of n of "stage_c" or "stage_b" with the latents predicted there; raise in it to stop."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the images and how each stage is sampled; the defaults are the released ones.

    enlarge: the images become so many times as large as width and height: Stage C first runs at these, then once more
        on its enlarged latents with `enlarge_strength`, which keeps what is where and adds detail.
    tiles: Stage B and Stage A work in such tiles; for images too large for memory.
    """

    width: int = 1024
    height: int = 1024
    stage_c: SamplingSettings = STAGE_C_SETTINGS
    stage_b: SamplingSettings = STAGE_B_SETTINGS
    enlarge: float = 1.0
    enlarge_strength: float = 0.4
    tiles: Tiles | None = None

    @property
    def final(self) -> tuple[int, int]:
        """Height and width of the images that come out."""
        return round(self.height * self.enlarge), round(self.width * self.enlarge)

    @property
    def sizes(self) -> LatentSizes:
        """Of the latents of the images that come out. Raises InvalidSize."""
        return latent_sizes(*self.final)


RELEASED_SETTINGS = Settings()


@dataclass(frozen=True, kw_only=True)
class ImageToImage:
    """Images to start from: image to image.

    images: [B, 3, H, W] in [0, 1], one for each prompt. Another size than that of the settings is fitted to cover it.
    strength: how far Stage C goes from the image to the prompt, in (0, 1].
    strength_b: the same for Stage B, which below 1 starts from the images as Stage A encodes them: fine detail stays.
    mask: [B or 1, 1, H, W] in [0, 1]; where it is 0 the image stays as it is, pixel for pixel.
    as_released: see `Start`.
    """

    images: Tensor
    strength: float = 0.7
    strength_b: float = 1.0
    mask: Tensor | None = None
    as_released: bool = False


@dataclass(frozen=True)
class Generated:
    """Images [B, 3, H, W] in [0, 1] (float32, on the CPU), and the latents of Stage C and Stage B they came from."""

    images: Tensor
    stage_c: Tensor
    stage_b: Tensor


@torch.no_grad()
def generate(
    parts: Parts,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative: str = "",
    source: ImageToImage | None = None,
    variation_of: Tensor | Sequence[Tensor] | None = None,
    variation_weights: Sequence[float] | None = None,
    controls: Sequence[Control] = (),
    settings: Settings = RELEASED_SETTINGS,
    on_progress: OnProgress | None = None,
) -> Generated:
    """One image for each prompt, from the seed at the same place; but for rounding, alone it is the same.

    parts: "text_encoder", "stage_c", "stage_b", "stage_a"; with a source "effnet", for variations "image_encoder" too.
    negative: what to keep away; the empty prompt is the released unconditional one.
    source: images to start from, with or without a mask.
    variation_of: images [B, 3, H, W] in [0, 1] to vary, one for each prompt (which may be empty); or several such.
    variation_weights: how much each of several counts; a negative one leads away from it. Default: 1 each.
    controls: ControlNets with their hints; what they add to Stage C is added up.

    Raises ValueError for prompts, seeds, images and hints of unequal number, InvalidSize, InvalidImage,
    MissingPart, or what loading a part raises.
    """
    varied = [variation_of] if isinstance(variation_of, Tensor) else list(variation_of or ())
    images = [*varied, *([] if source is None else [source.images])]
    if {len(prompts)} != {len(prompts), len(seeds), *map(len, images)} or not prompts:
        raise ValueError(f"each image needs a prompt and a seed: {len(prompts)} prompts, {len(seeds)} seeds")
    if wrong := [len(control.hint) for control in controls if len(control.hint) not in (1, len(prompts))]:
        raise ValueError(f"one hint for each image, or one for all: {wrong[0]} hints, {len(prompts)} images")
    sizes = settings.sizes
    texts = parts.use("text_encoder", lambda net: encode_prompts(net, [*prompts, negative]))
    clip_img = None
    if varied:
        embeddings = parts.use("image_encoder", lambda net: [ImageEncoder(net).encode(as_rgb(x)) for x in varied])
        clip_img = combine_images(embeddings, variation_weights)
    starts = Starts() if source is None else _encoded(parts, source, settings, sizes)
    prompted = [texts[prompt] for prompt in prompts]
    run = Run(prompted, texts[negative], clip_img, seeds, settings, starts, on_progress, controls)
    return run(parts)


@dataclass(frozen=True)
class Starts:
    """Where both stages start from, and what is put around the result; None for nothing."""

    stage_c: Start | None = None
    stage_b: Start | None = None
    images: Tensor | None = None
    mask: Tensor | None = None


def _encoded(parts: Parts, source: ImageToImage, settings: Settings, sizes: LatentSizes) -> Starts:
    images = fit(as_rgb(source.images), *settings.final)
    mask = None if source.mask is None else resize_mask(as_mask(source.mask), settings.final)
    small, large = sizes.stage_c[-2:], sizes.stage_b[-2:]
    effnet = parts.use("effnet", lambda net: encode_stage_c(net, images, small))
    stage_c = Start(
        latents=effnet,
        strength=source.strength,
        mask=None if mask is None else mask_of_latent(mask, small),
        as_released=source.as_released,
    )
    stage_b = None
    if source.strength_b < 1 or mask is not None:
        tile = settings.tiles and settings.tiles.side
        stage_b = Start(
            latents=parts.use("stage_a", lambda net: encode_stage_a(net, images, tile)),
            strength=source.strength_b,
            mask=None if mask is None else mask_of_latent(mask, large),
        )
    return Starts(stage_c, stage_b, images, mask)


@dataclass(frozen=True)
class Run:
    """All that the stages of one call share."""

    texts: Sequence[TextEmbedding]
    negative: TextEmbedding
    clip_img: Tensor | None
    seeds: Sequence[int]
    settings: Settings
    starts: Starts
    on_progress: OnProgress | None
    controls: Sequence[Control] = ()

    def __call__(self, parts: Parts) -> Generated:
        effnet = parts.use("stage_c", self.stage_c)
        stage_b = parts.use("stage_b", lambda net: self.stage_b(net, effnet))
        tile = self.settings.tiles and self.settings.tiles.side
        images = parts.use("stage_a", lambda net: decode(net, stage_b, tile))
        height, width = self.settings.final
        images = images[..., :height, :width]
        if self.starts.images is not None and self.starts.mask is not None:
            images = composite(images, self.starts.images, self.starts.mask)
        return Generated(images, effnet, stage_b)

    def stage_c(self, net: StageC) -> Tensor:
        groups = self._groups()
        latents: dict[int, Tensor] = {}
        for number, group in enumerate(groups):
            latents.update(zip(group, self._stage_c_of(net, group, number, len(groups)), strict=True))
        return torch.stack([latents[i] for i in range(len(self.texts))])

    def _stage_c_of(self, net: StageC, group: list[int], number: int, groups: int) -> Tensor:
        """Stage C's latents of some of the images, in one pass or two."""
        inputs, settings = self._stage_c_inputs(net, group), self.settings
        twice = settings.enlarge != 1 and self.starts.stage_c is None
        first, final = latent_sizes(settings.height, settings.width).stage_c, settings.sizes.stage_c

        def run(size: Sequence[int], start: Start | None, turn: int) -> Tensor:
            return sample_stage_c(
                net,
                inputs,
                inputs.unconditional(self.negative),
                size=size,
                seeds=[self.seeds[i] for i in group],
                settings=settings.stage_c,
                start=start,
                controls=[control.of(group) for control in self.controls],
                on_step=self._on_step("stage_c", turn, groups * (1 + twice)),
            )

        if not twice:
            return run(final, _rows(self.starts.stage_c, group), number)
        small = run(first, None, 2 * number)
        larger = F.interpolate(small.float(), final[-2:], mode="bilinear")
        return run(final, Start(latents=larger, strength=settings.enlarge_strength), 2 * number + 1)

    def stage_b(self, net: StageB, effnet: Tensor) -> Tensor:
        inputs = StageBInputs(effnet, torch.cat([text.pooled for text in self.texts]))
        return sample_stage_b(
            net,
            inputs,
            inputs.unconditional(self.negative),
            size=self.settings.sizes.stage_b,
            seeds=self.seeds,
            settings=self.settings.stage_b,
            start=self.starts.stage_b,
            tiles=self.settings.tiles,
            on_step=self._on_step("stage_b"),
        )

    def _groups(self) -> list[list[int]]:
        """Places of the images that Stage C can sample together: those with text of one length."""
        groups: dict[int, list[int]] = {}
        for i, text in enumerate(self.texts):
            groups.setdefault(text.hidden.shape[1], []).append(i)
        return list(groups.values())

    def _stage_c_inputs(self, net: StageC, group: list[int]) -> StageCInputs:
        text = TextEmbedding.join([self.texts[i] for i in group])
        if self.clip_img is None:
            return StageCInputs.without_image(text, net.config.clip_img)
        return StageCInputs.of(text, self.clip_img[group])

    def _on_step(self, stage: str, group: int = 0, groups: int = 1) -> OnStep | None:
        """A stage's steps reported as one run, even when it takes several."""
        report = self.on_progress
        if report is None:
            return None
        return lambda i, n, x0: report(stage, group * n + i, groups * n, x0)


def _rows(start: Start | None, rows: list[int]) -> Start | None:
    """The start of some of the images."""
    if start is None:
        return None
    mask = start.mask if start.mask is None or len(start.mask) == 1 else start.mask[rows]
    return replace(start, latents=start.latents[rows], mask=mask)
