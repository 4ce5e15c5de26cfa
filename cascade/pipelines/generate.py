"""Prompts and images to images: text, Stage C, Stage B, Stage A, one network in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditioning import StageBInputs, StageCInputs, TextEmbedding
from ..diffusion import Inverted, Keeping, SamplingSettings, Steering
from ..editing import AttentionController, Region, Regions, SeenImages, StyleAligned
from ..errors import InvalidSettings
from ..images import as_mask, as_rgb, composite, fit, mask_of_latent, resize_mask
from ..models import StageB, StageC
from .control import Control
from .high_res import HighRes
from .inversion import Inversion
from .ip_adapter import IPAdapterImages, following
from .memory import check_network
from .networks import Parts
from .plan import STAGE_B_SETTINGS, STAGE_C_SETTINGS, StagePlan, Start, Tiles
from .prior import PriorPrompt
from .prompt_images import ImagePrompt, encode_prompt_images
from .sizes import LatentSizes, latent_sizes
from .stages import (
    OnStep,
    decode,
    encode_prompts,
    encode_stage_a,
    encode_stage_c,
    features_of,
    invert_stage_c,
    sample_features,
    sample_stage_b,
    sample_stage_c,
)
from .style import StyleReference

OnProgress = Callable[[str, int, int, Tensor], Any]
"""Called after step i (from 0) of n of "stage_c" or "stage_b" with the latents predicted there; raise in it to stop."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the images and how each stage is sampled; the defaults are the released ones.

    enlarge: factor by which the images are larger than width and height: Stage C first runs at that size, then again on
        its enlarged latents with `enlarge_strength`, which keeps the composition and adds detail.
    tiles: tiles of Stage B and Stage A, for images too large for memory.
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
        """Height and width of the resulting images."""
        return round(self.height * self.enlarge), round(self.width * self.enlarge)

    @property
    def sizes(self) -> LatentSizes:
        """The latents' sizes for the resulting images. Raises InvalidSize."""
        return latent_sizes(*self.final)

    @property
    def tile_size(self) -> int | None:
        """Side of Stage A's tiles in pixels; None for no tiles."""
        return self.tiles and self.tiles.tile_size


RELEASED_SETTINGS = Settings()


@dataclass(frozen=True, kw_only=True)
class ImageToImage:
    """Images to start from.

    images: [B, 3, H, W] in [0, 1], one for each prompt. They are scaled and cropped to the settings' size.
    strength: how much of the image Stage C generates again, in (0, 1]; 1 is all of it.
    strength_b: the same for Stage B, which below 1 starts from Stage A's latents of the images, so that fine detail
        stays.
    mask: [B or 1, 1, H, W] in [0, 1]; where it is 0 the image stays as it is, pixel for pixel.
    as_released: see `Start`.
    """

    images: Tensor
    strength: float = 0.7
    strength_b: float = 1.0
    mask: Tensor | None = None
    as_released: bool = False


@dataclass(frozen=True)
class RegionalPrompt:
    """What a part of the images should show.

    mask: [1, 1, H, W] in [0, 1], 1 where the prompt acts; scaled to the images.
    """

    mask: Tensor
    prompt: str


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
    prior: PriorPrompt | None = None,
    controls: Sequence[Control] = (),
    high_res: HighRes | None = None,
    regions: Sequence[RegionalPrompt] = (),
    style: StyleReference | None = None,
    style_aligned: float = 0.0,
    prompt_images: Sequence[ImagePrompt] = (),
    negative_images: Sequence[ImagePrompt] = (),
    ip_adapters: Sequence[IPAdapterImages] = (),
    settings: Settings = RELEASED_SETTINGS,
    on_progress: OnProgress | None = None,
) -> Generated:
    """One image for each prompt, with the seed at the same index.

    It is the same alone or in a batch, to rounding: with another number of rows, matrix products add in another order.
    In float32, pixels of the tiny cascade in [0, 1] differ by at most 0.005 then, which a test holds.

    parts: "text_encoder", "stage_c", "stage_b", "stage_a"; with a source "effnet", for variations "image_encoder" too.
    negative: what the images should not show; released: the empty prompt.
    source: images to start from, with or without a mask.
    variation_of: images [B, 3, H, W] in [0, 1] to vary, one for each prompt (which may be empty); or several of these.
    variation_weights: a weight for each of several, as in `ImagePrompt`. Default: 1 each.
    prior: turns each prompt into an image embedding, which Stage C reads beside the images; the stages get no text.
    controls: ControlNets with their hints; their residuals are added up.
    high_res: guides for images of more than about 1.5 megapixels: Stage C runs at `high_res.resolution` first (without
        a source), then at the images' size. ControlNets act in the first run. The last progress of the first run has
        its latents.
    regions: parts of the images with prompts of their own, beside those of the images.
    style: an image whose look all images get. Also needs "image_encoder"; with control "effnet" and "previewer".
    style_aligned: how much all images share the look of the first, 0 to 1; 0 is the plain run, bit for bit.
    prompt_images, negative_images: images beside the prompts, and beside the negative prompt. Also need
        "image_encoder".
    ip_adapters: images that all images follow, by IP-Adapters. Also needs "image_encoder".

    Raises ValueError for prompts, seeds, images and hints of unequal number, InvalidSize (also for a size that does not
    fit into memory), InvalidImage, MissingPart, or what loading a part raises.
    """
    varied = [variation_of] if isinstance(variation_of, Tensor) else list(variation_of or ())
    images = [*varied, *([] if source is None else [source.images])]
    shown = [*prompt_images, *([ImagePrompt(images=varied, weights=variation_weights)] if varied else [])]
    if {len(prompts)} != {len(prompts), len(seeds), *map(len, images)} or not prompts:
        raise ValueError(f"each image needs a prompt and a seed: {len(prompts)} prompts, {len(seeds)} seeds")
    beside = [image for prompt in (*prompt_images, *negative_images) for image in prompt.images]
    if wrong := [len(image) for image in beside if len(image) not in (1, len(prompts))]:
        raise ValueError(f"one image of a prompt for each image, or one for all: {wrong[0]} and {len(prompts)}")
    if wrong := [len(control.hint) for control in controls if len(control.hint) not in (1, len(prompts))]:
        raise ValueError(f"one hint for each image, or one for all: {wrong[0]} hints, {len(prompts)} images")
    if high_res is not None and settings.enlarge != 1:
        raise InvalidSettings("high-res guides and enlarge are two ways to a large image: use one of them")
    if sum((bool(regions), style is not None, style_aligned != 0)) > 1:
        raise InvalidSettings("regions, a style and a shared style all change what attention sees: use one of them")
    if style is not None and ip_adapters:
        raise InvalidSettings("a style and an IP-Adapter both say how images look: use one of them")
    sizes = settings.sizes
    said = prompts if prior is None else [""] * len(prompts)
    wanted = [*prompts, *said, negative, *(region.prompt for region in regions)]
    texts = parts.use("text_encoder", lambda net: encode_prompts(net, wanted))
    made = None if prior is None else prior.embeddings([texts[prompt] for prompt in prompts], texts[negative], seeds)
    seen = encode_prompt_images(parts, shown, negative_images, made)
    run = Run(
        texts=[texts[prompt] for prompt in said],
        negative=texts[negative],
        images=seen,
        seeds=seeds,
        settings=settings,
        controls=controls,
        high_res=high_res,
        attention=Regions([Region(each.mask, texts[each.prompt]) for each in regions]) if regions else None,
        on_progress=on_progress,
    )
    if style_aligned:
        run = run.sharing_style(style_aligned)
    run = following(parts, run, ip_adapters)
    run = run if source is None else run.starting_from(parts, source, sizes)
    return run(parts) if style is None or style.weight == 0 else style(parts, run)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of a pipeline: what its stages share, and the plan of each stage."""

    texts: Sequence[TextEmbedding]
    negative: TextEmbedding
    seeds: Sequence[int]
    settings: Settings
    images: SeenImages = field(default_factory=SeenImages)
    controls: Sequence[Control] = ()
    high_res: HighRes | None = None
    inversion: Inversion | None = None
    """Images whose noise Stage C gets, in the place of the seeds'."""
    skip: int = 0
    """The first steps of their run that are left out."""
    attention: AttentionController | None = None
    keeping: Keeping | None = None
    steering: Steering | None = None
    source_c: Tensor | None = None
    """Stage C's latents of the images to start from, at the resolution that high-res guides read."""
    start_c: Start | None = None
    start_b: Start | None = None
    around: tuple[Tensor, Tensor] | None = None
    """Images, and the mask outside which they are kept."""
    on_progress: OnProgress | None = None

    def __call__(self, parts: Parts) -> Generated:
        """All stages, from the prompts to images."""
        return self.from_stage_c(parts, parts.use("stage_c", self.stage_c))

    def from_stage_c(self, parts: Parts, stage_c: Tensor) -> Generated:
        """Stage B and Stage A, from Stage C's latents [B, 16, h, w]."""
        stage_b = parts.use("stage_b", lambda net: self.stage_b(net, stage_c))
        images = parts.use("stage_a", lambda net: decode(net, stage_b, self.settings.tile_size))
        height, width = self.settings.final
        images = images[..., :height, :width]
        return Generated(images if self.around is None else composite(images, *self.around), stage_c, stage_b)

    def sharing_style(self, weight: float) -> Run:
        """The same run, whose images get the look of the first. Raises InvalidSettings for a wrong weight, and for
        prompts of different length, which are not sampled together."""
        if len(self._groups()) > 1:
            raise InvalidSettings(
                "images of one style are sampled together, so their prompts must be of a similar length: all up to 75 "
                "tokens, or all up to 150, and so on"
            )
        return replace(self, attention=StyleAligned(weight=weight))

    def starting_from(self, parts: Parts, source: ImageToImage, sizes: LatentSizes) -> Run:
        """The same run, starting from images that are encoded for both stages."""
        settings = self.settings
        images = fit(as_rgb(source.images), *settings.final)
        mask = None if source.mask is None else resize_mask(as_mask(source.mask), settings.final)

        def start(latents: Tensor, as_released: bool = False) -> Start:
            latent_mask = None if mask is None else mask_of_latent(mask, latents.shape[-2:])
            return Start(latents=latents, mask=latent_mask, as_released=as_released)

        def encoded(sizes: LatentSizes) -> Tensor:
            return parts.use("effnet", lambda net: encode_stage_c(net, images, sizes.stage_c[-2:]))

        start_c, start_b = start(encoded(sizes), source.as_released), None
        source_c = None if self.high_res is None else encoded(self._first_sizes(self.high_res))
        if source.strength_b < 1 or mask is not None:
            start_b = start(parts.use("stage_a", lambda net: encode_stage_a(net, images, settings.tile_size)))
        stages = replace(
            settings,
            stage_c=settings.stage_c.with_strength(source.strength),
            stage_b=settings.stage_b.with_strength(source.strength_b) if start_b else settings.stage_b,
        )
        around = None if mask is None else (images, mask)
        return replace(self, settings=stages, start_c=start_c, start_b=start_b, source_c=source_c, around=around)

    def _first_sizes(self, high_res: HighRes) -> LatentSizes:
        return latent_sizes(*high_res.first_size(*self.settings.final))

    def stage_c(self, net: StageC) -> Tensor:
        """Stage C's latents [B, 16, h, w]."""
        groups = self._groups()
        latents: dict[int, Tensor] = {}
        for number, group in enumerate(groups):
            latents.update(zip(group, self._stage_c_of(net, group, number, len(groups)), strict=True))
        return torch.stack([latents[i] for i in range(len(self.texts))])

    def inverted(self, net: StageC) -> Inverted:
        """The noise with which Stage C's run ends at the latents that it starts from."""
        groups = self._groups()
        found = [
            invert_stage_c(net, self._stage_c_plan(net, group), self._on_step("stage_c", number, len(groups)))
            for number, group in enumerate(groups)
        ]
        order = [i for group in groups for i in group]
        return Inverted.join(found).of([order.index(i) for i in range(len(order))])

    def stage_b(self, net: StageB, stage_c: Tensor) -> Tensor:
        """Stage B's latents [B, 4, h, w] from Stage C's."""
        if self.settings.tiles is None:
            check_network(net, (len(self.texts), *self.settings.sizes.stage_b), "tiles of 1024 pixels")
        cond = StageBInputs(stage_c, torch.cat([text.pooled for text in self.texts]))
        plan = StagePlan(
            stage="stage_b",
            size=self.settings.sizes.stage_b,
            seeds=self.seeds,
            settings=self.settings.stage_b,
            cond=cond,
            uncond=cond.unconditional(self.negative),
            start=self.start_b,
            tiles=self.settings.tiles,
        )
        return sample_stage_b(net, plan, self._on_step("stage_b"))

    def _stage_c_of(self, net: StageC, group: list[int], number: int, groups: int) -> Tensor:
        """Stage C's latents of some of the images, in one pass or two."""
        plan = self._stage_c_plan(net, group)
        check_network(net, (len(group), *plan.size))
        if self.high_res is not None:
            return self._guided(net, plan, self.high_res, group, number, groups)
        if self.settings.enlarge == 1 or self.start_c is not None:
            return sample_stage_c(net, plan, self._on_step("stage_c", number, groups))
        first = replace(plan, size=latent_sizes(self.settings.height, self.settings.width).stage_c)
        latents = sample_stage_c(net, first, self._on_step("stage_c", 2 * number, 2 * groups))
        larger = F.interpolate(latents.float(), tuple(plan.size[-2:]), mode="bilinear")
        settings = plan.settings.with_strength(self.settings.enlarge_strength)
        second = replace(plan, settings=settings, start=Start(latents=larger))
        return sample_stage_c(net, second, self._on_step("stage_c", 2 * number + 1, 2 * groups))

    def _guided(
        self, net: StageC, plan: StagePlan[StageCInputs], high_res: HighRes, group: list[int], number: int, groups: int
    ) -> Tensor:
        """Stage C's latents with high-res guides, which read the features of a first pass or of the source."""
        first = replace(plan, size=self._first_sizes(high_res).stage_c)
        if self.source_c is None:
            _, features = sample_features(net, first, self._on_step("stage_c", 2 * number, 2 * groups))
            on_step = self._on_step("stage_c", 2 * number + 1, 2 * groups)
        else:
            features = features_of(net, first, self.source_c[group])
            on_step = self._on_step("stage_c", number, groups)
        # ControlNets act in the pass for whose resolution they were trained; the second follows it.
        controls = plan.controls if self.source_c is not None else ()
        second = replace(plan, controls=controls, high_res=high_res, features=features)
        return sample_stage_c(net, second, on_step)

    def _stage_c_plan(self, net: StageC, group: list[int]) -> StagePlan[StageCInputs]:
        text = TextEmbedding.join([self.texts[i] for i in group])
        images, plain = self.images.of(group), StageCInputs.without_image(text, net.config.clip_img)
        seen = images.inputs(plain)
        cond = seen if self.attention is None else self.attention.inputs(seen)
        # What attention control adds has a counterpart of zeros; image prompts have none beside the negative prompt.
        added = cond.clip_img[:, seen.clip_img.shape[1] :]
        uncond = images.negative_inputs(plain.unconditional(self.negative))
        uncond = replace(uncond, clip_img=torch.cat([uncond.clip_img, torch.zeros_like(added)], dim=1))
        plan = StagePlan(
            stage="stage_c",
            size=self.settings.sizes.stage_c,
            seeds=[self.seeds[i] for i in group],
            settings=self.settings.stage_c,
            cond=cond,
            uncond=uncond,
            start=_rows(self.start_c, group),
            controls=[control.of(group) for control in self.controls],
            attention=images.beside(self.attention),
            keeping=self.keeping,
            steering=self.steering,
        )
        return plan if self.inversion is None else self.inversion.of(group).plan(plan, self.skip)

    def _groups(self) -> list[list[int]]:
        """Indices of the images that Stage C can sample together: those with text of the same length."""
        groups: dict[int, list[int]] = {}
        for i, text in enumerate(self.texts):
            groups.setdefault(text.hidden.shape[1], []).append(i)
        return list(groups.values())

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
