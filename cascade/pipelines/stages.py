"""The steps of a job, each on one network: text, Stage C, Stage B, Stage A. They can be put together in other ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..conditioning import StageBInputs, StageCInputs, TextEmbedding, TextEncoder
from ..diffusion import RELEASED_DIFFUSION, Guidance, Kept, SeededNoise, sample
from ..images import Box, blended, effnet_input, stage_c_input, stitched
from ..images.resize import COMPRESSION
from ..models import EffnetEncoder, StageA, StageB, StageC
from ..models.blocks import resize
from .control import Control, controlled
from .sizes import STAGE_B_FACTOR

OnStep = Callable[[int, int, Tensor], Any]
"""Called after step i (from 0) of n with the x0 predicted there; raise in it to stop."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How one stage is sampled; the released settings are STAGE_C_SETTINGS and STAGE_B_SETTINGS."""

    steps: int
    guidance: Guidance
    shift: float
    sampler: str = "ddpm"


STAGE_C_SETTINGS = SamplingSettings(steps=20, guidance=Guidance(scale=4.0, rho=0.7), shift=2.0)
STAGE_B_SETTINGS = SamplingSettings(steps=10, guidance=Guidance(scale=1.1, rho=0.7), shift=1.0)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts from, in place of noise alone.

    latents: [B, c, h, w], of the stage that runs.
    strength: time in (0, 1] up to which they are noised: 1 leaves next to nothing of them.
    mask: [B or 1, 1, h, w]; where it is 0 the latents stay as they are, where it is 1 all is drawn anew.
    as_released: noise them with shift 1, whatever the run's shift, as the released code does. The run then takes the
        latents for noisier than they are, and the result comes out weaker and smoother.
    """

    latents: Tensor
    strength: float
    mask: Tensor | None = None
    as_released: bool = False


@dataclass(frozen=True)
class Tiles:
    """Tiles for images that are too large for memory in one piece; pixels."""

    side: int = 1024
    overlap: int = 256


def encode_prompts(model: nn.Module, prompts: Iterable[str]) -> dict[str, TextEmbedding]:
    """prompt -> embedding of batch 1, as long as the prompt needs.

    Each by itself, so that a prompt's embedding does not depend on its neighbors.
    """
    encoder = TextEncoder(model)
    return {prompt: encoder.encode([prompt]) for prompt in dict.fromkeys(prompts)}


def sample_stage_c(
    net: StageC,
    inputs: StageCInputs,
    unconditional: StageCInputs,
    *,
    size: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = STAGE_C_SETTINGS,
    start: Start | None = None,
    controls: Sequence[Control] = (),
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents [B, *size] of 16 channels, one image for each of the B seeds."""
    cond, uncond = (
        {"conditions": net.conditions(**_placed(net, given.as_kwargs()))} for given in (inputs, unconditional)
    )
    predict = controlled(net, controls, size, len(seeds), settings.shift) if controls else net.denoise
    return _sample(net, predict, (cond, uncond), SeededNoise(seeds, "stage_c"), size, settings, start, on_step)


def sample_stage_b(
    net: StageB,
    inputs: StageBInputs,
    unconditional: StageBInputs,
    *,
    size: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = STAGE_B_SETTINGS,
    start: Start | None = None,
    tiles: Tiles | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents [B, *size] of 4 channels, one image for each of the B seeds.

    tiles: every step is predicted in such tiles, each with its own part of the effnet latents, and mixed where they
        overlap. Memory then depends on the tiles, but a tile does not see what is outside it.
    """
    noise = SeededNoise(seeds, "stage_b")
    height, width = size[-2:]
    given = [_placed(net, each.as_kwargs()) for each in (inputs, unconditional)]
    if tiles is None or max(height, width) * STAGE_B_FACTOR <= tiles.side:
        cond, uncond = ({"conditions": net.conditions(**each, size=(height, width))} for each in given)
        return _sample(net, net.denoise, (cond, uncond), noise, size, settings, start, on_step)
    patch = net.config.patch_size
    grid = (-(-height // patch), -(-width // patch))
    cond, uncond = ({**each, "effnet": resize(each["effnet"], grid)} for each in given)
    return _sample(net, _in_tiles(net, tiles), (cond, uncond), noise, size, settings, start, on_step)


def _in_tiles(net: StageB, tiles: Tiles) -> Callable[..., Tensor]:
    """Stage B's forward in tiles, for effnet latents that have the size of its grid."""
    patch, deepest = net.config.patch_size, 2 ** (len(net.config.levels) - 1)

    def predict(x: Tensor, r: Tensor, effnet: Tensor, clip: Tensor) -> Tensor:
        def part(x: Tensor, box: Box) -> Tensor:
            # Conditions are not kept: those of all tiles together would take as much memory as the whole image.
            return net(x, r, box.scaled(1, patch).of(effnet), clip)

        side, overlap = tiles.side // STAGE_B_FACTOR, tiles.overlap // STAGE_B_FACTOR
        return blended(part, x, side=side, overlap=overlap, align=patch * deepest)

    return predict


def encode_stage_c(net: EffnetEncoder, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents [B, 16, *size] of images [B, 3, H, W] in [0, 1], with the released image to image's preprocessing."""
    return net(stage_c_input(images, size).to(next(net.parameters())))


def encode_effnet(net: EffnetEncoder, images: Tensor, compression: float = COMPRESSION) -> Tensor:
    """Latents [B, 16, h, w] of images [B, 3, H, W] in [0, 1], with the released reconstruction's preprocessing.

    compression: pixels to a side of one latent.
    """
    return net(effnet_input(images, compression).to(next(net.parameters())))


def encode_stage_a(net: StageA, images: Tensor, tile: int | None = None) -> Tensor:
    """Stage B's latents [B, 4, h, w], float32, on the CPU, of images [B, 3, H, W] in [0, 1], one after another.

    tile: side in pixels of tiles that are encoded by themselves, which takes less memory and changes nothing.
    """
    parameter = next(net.parameters())
    config, down = net.config, net.config.compression

    def encode(images: Tensor) -> Tensor:
        return net.encode(images.to(parameter)).float().cpu()

    if tile is None:
        return torch.cat([encode(image[None]) for image in images])
    side = tile // down * down
    return torch.cat(
        [stitched(encode, image[None], side=side, margin=config.encoding_reach, down=down) for image in images]
    )


def decode(net: StageA, latents: Tensor, tile: int | None = None) -> Tensor:
    """Images [B, 3, 4 h, 4 w] in [0, 1], float32, on the CPU, of latents [B, 4, h, w].

    One image after another: decoding takes the most memory of all, and is no faster in a batch.

    tile: side in pixels of tiles that are decoded by themselves, which takes less memory and changes nothing.
    """
    parameter = next(net.parameters())

    def draw(latents: Tensor) -> Tensor:
        return net.decode(latents.to(parameter)).float().clamp(0, 1).cpu()

    if tile is None:
        return torch.cat([draw(latent[None]) for latent in latents])
    config, up = net.config, net.config.compression
    return torch.cat(
        [stitched(draw, latent[None], side=tile // up, margin=config.decoding_reach, up=up) for latent in latents]
    )


def _placed(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    parameter = next(net.parameters())
    return {name: tensor.to(parameter) for name, tensor in tensors.items()}


def _sample(
    net: nn.Module,
    predict: Any,
    conditions: tuple[Any, Any],
    noise: SeededNoise,
    size: Sequence[int],
    settings: SamplingSettings,
    start: Start | None,
    on_step: OnStep | None,
) -> Tensor:
    parameter = next(net.parameters())
    epsilon = noise.start(*size).to(parameter)
    x, kept = (epsilon, None) if start is None else _noised(start, epsilon, settings.shift)
    return sample(
        predict,
        x,
        cond=conditions[0],
        uncond=conditions[1],
        steps=settings.steps,
        sampler=settings.sampler,
        shift=settings.shift,
        t_start=1.0 if start is None else start.strength,
        guidance=settings.guidance,
        noise=noise,
        kept=kept,
        on_step=on_step,
    )


def _noised(start: Start, epsilon: Tensor, shift: float) -> tuple[Tensor, Kept | None]:
    """The latents of a start with noise, and what of them is kept."""
    latents = start.latents.to(epsilon)
    log_snr = RELEASED_DIFFUSION.schedule(start.strength, 1.0 if start.as_released else shift)
    kept = None if start.mask is None else Kept(latents, start.mask.to(epsilon), epsilon)
    return RELEASED_DIFFUSION.noised(latents, epsilon, log_snr), kept
