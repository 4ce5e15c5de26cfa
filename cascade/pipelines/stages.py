"""One function for each network: text encoder, Stage C, Stage B, Stage A, encoder. Pipelines are made of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..conditioning import StageBInputs, StageCInputs, TextEmbedding, TextEncoder
from ..diffusion import (
    CacheRun,
    Diffusion,
    Inverted,
    Keeping,
    Kept,
    NetworkArguments,
    StepArguments,
    sample,
)
from ..diffusion.noise import Noise
from ..editing import NetworkCall, Tokens
from ..images import effnet_input, stage_c_input, stitched
from ..images.resize import COMPRESSION
from ..models import AroundAttention, Conditions, EffnetEncoder, Features, Residuals, StageA, StageB, StageC
from ..models.blocks import ResBlock
from ..models.high_res import FeatureRecorder, GuidedRun
from ..models.stack import AroundInner
from .control import ControlRun
from .high_res import SOURCE_TIME
from .plan import StagePlan, in_tiles
from .process import diffusion_of

logger = logging.getLogger("cascade")

OnStep = Callable[[int, int, Tensor], Any]
"""Called after step i (from 0) of n with the x0 predicted there; raise in it to stop."""


def encode_prompts(model: nn.Module, prompts: Iterable[str]) -> dict[str, TextEmbedding]:
    """prompt -> embedding of batch 1, of the length that the prompt needs.

    Each is encoded separately, so that its embedding, and its image, does not depend on the other prompts.
    """
    encoder = TextEncoder(model)
    return {prompt: encoder.encode([prompt]) for prompt in dict.fromkeys(prompts)}


def sample_stage_c(net: StageC, plan: StagePlan[StageCInputs], on_step: OnStep | None = None) -> Tensor:
    """Latents [B, 16, h, w]. Raises IncompatibleCheckpoint for a ControlNet or high-res guides that do not fit."""
    return _sample_stage_c(net, plan, on_step, None)


def sample_features(
    net: StageC, plan: StagePlan[StageCInputs], on_step: OnStep | None = None
) -> tuple[Tensor, Features]:
    """Latents [B, 16, h, w], and the features of the last step with the prompt, one row for each image.

    Raises IncompatibleCheckpoint as `sample_stage_c`.
    """
    recorder = FeatureRecorder(net.places())
    latents = _sample_stage_c(net, plan, on_step, recorder)
    return latents, recorder.features(slice(len(latents)))


def features_of(net: StageC, plan: StagePlan[StageCInputs], latents: Tensor) -> Features:
    """The features of an image's latents [B, 16, h, w], with a little of the plan's noise, and its prompt."""
    epsilon = plan.noise.start(*latents.shape[1:]).to(next(net.parameters()))
    diffusion = diffusion_of(net.config)
    log_snr = diffusion.schedule(torch.full((len(latents),), SOURCE_TIME, device=epsilon.device))
    x = diffusion.noised(latents.to(epsilon), epsilon, log_snr)
    r = diffusion.noise_condition(log_snr)
    return net.features(x, r, **_placed(net, plan.cond.as_kwargs()))[1]


def invert_stage_c(net: StageC, plan: StagePlan[StageCInputs], on_step: OnStep | None = None) -> Inverted:
    """The noise with which a run of this plan ends at the latents that it starts from, see `Inverting`.

    The noise in the image at each step is the plan's.
    """
    inverting = plan.inverting(next(net.parameters()).device, diffusion_of(net.config))

    def both(i: int, n: int, x0: Tensor) -> None:
        inverting.on_step(i, n, x0)
        if on_step is not None:
            on_step(i, n, x0)

    return inverting.found(_sample_stage_c(net, plan, both, None, inverting))


def _sample_stage_c(
    net: StageC,
    plan: StagePlan[StageCInputs],
    on_step: OnStep | None,
    recorder: FeatureRecorder | None,
    noise: Noise | None = None,
) -> Tensor:
    if plan.attention is not None:
        plan.attention.check_network(net)
    cond, uncond = (net.conditions(**_placed(net, given.as_kwargs())) for given in (plan.cond, plan.uncond))
    width, blocks = net.config.levels[0].width, len(net.blocks(ResBlock))
    controls = ControlRun(plan.controls, width, blocks, plan.size) if plan.controls else None
    guided = None
    if plan.high_res is not None and plan.features is not None:
        guided = GuidedRun(plan.high_res.guides, plan.features, net.places())

    def step_arguments(percent: float, batch: int) -> NetworkArguments:
        weight = {} if plan.high_res is None else {"weight": plan.high_res.weight_at(percent)}
        part = {} if plan.attention is None else {"percent": percent}
        return {**({} if controls is None else controls(percent, batch)), **weight, **part}

    def around_attention(conditions: Conditions, percent: float) -> AroundAttention | None:
        if plan.attention is None:
            return None
        given = plan.uncond if conditions is uncond else plan.cond
        tokens = Tokens.of(**given.as_kwargs(), each=net.config.condition_tokens)
        with_prompt = (True,) if conditions is cond else (False,) if conditions is uncond else (True, False)
        return plan.attention.around(NetworkCall(percent, with_prompt, tokens, net.config.attention_blocks))

    def predict(
        x: Tensor,
        r: Tensor,
        conditions: Conditions,
        control: Residuals | None = None,
        weight: float = 0.0,
        percent: float = 0.0,
        around_inner: AroundInner | None = None,
    ) -> Tensor:
        after = None if guided is None else guided.after_attention(r, weight)
        if recorder is not None and conditions is not uncond:  # with the prompt, or both with the prompt first
            after = recorder.after_attention
        return net.denoise(
            x,
            r,
            conditions,
            control=control,
            after_attention=after,
            around_inner=around_inner,
            around_attention=around_attention(conditions, percent),
        )

    without = {"conditions": uncond, "control": None} if controls is not None and controls.acting else None
    return _sample(
        net, plan, predict, {"conditions": cond}, {"conditions": uncond}, on_step, step_arguments, noise, without
    )


def sample_stage_b(net: StageB, plan: StagePlan[StageBInputs], on_step: OnStep | None = None) -> Tensor:
    """Latents [B, 4, h, w]."""
    cond, uncond = (_placed(net, given.as_kwargs()) for given in (plan.cond, plan.uncond))
    tiles = plan.acting_tiles
    if tiles is None:
        height, width = plan.size[-2:]
        cond, uncond = ({"conditions": net.conditions(**each, size=(height, width))} for each in (cond, uncond))
        return _sample(net, plan, net.denoise, cond, uncond, on_step)

    def predict(x: Tensor, r: Tensor, effnet: Tensor, clip: Tensor, around_inner: AroundInner | None = None) -> Tensor:
        # Neither conditions nor the inner levels are kept: those of all tiles together would take as much memory as the
        # whole image.
        return in_tiles(lambda x, part: net(x, r, clip=clip, **part), x, {"effnet": effnet}, tiles, net.config)

    return _sample(net, plan, predict, cond, uncond, on_step)


def encode_stage_c(net: EffnetEncoder, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents [B, 16, *size] of images [B, 3, H, W] in [0, 1], with the released image to image's preprocessing."""
    return net(stage_c_input(images, size).to(next(net.parameters())))


def encode_effnet(net: EffnetEncoder, images: Tensor, compression: float = COMPRESSION) -> Tensor:
    """Latents [B, 16, h, w] of images [B, 3, H, W] in [0, 1], with the released reconstruction's preprocessing.

    compression: pixels of an image per position of the latent, along a side.
    """
    return net(effnet_input(images, compression).to(next(net.parameters())))


def encode_stage_a(net: StageA, images: Tensor, tile_size: int | None = None) -> Tensor:
    """Stage B's latents [B, 4, h, w], float32, on the CPU, of images [B, 3, H, W] in [0, 1], one after another.

    tile_size: side in pixels of tiles that are encoded separately: less memory, the same result to rounding.
    """
    parameter = next(net.parameters())
    config, down = net.config, net.config.compression

    def encode(images: Tensor) -> Tensor:
        return net.encode(images.to(parameter)).float().cpu()

    if tile_size is None:
        return torch.cat([encode(image[None]) for image in images])
    side = tile_size // down * down
    return torch.cat(
        [stitched(encode, image[None], side=side, margin=config.encoding_reach, down=down) for image in images]
    )


def decode(net: StageA, latents: Tensor, tile_size: int | None = None) -> Tensor:
    """Images [B, 3, 4 h, 4 w] in [0, 1], float32, on the CPU, of latents [B, 4, h, w].

    One image after another: decoding takes the most memory of all stages, and a batch is not faster.

    tile_size: side in pixels of tiles that are decoded separately: less memory, the same result to rounding.
    """
    parameter = next(net.parameters())

    def decode_one(latents: Tensor) -> Tensor:
        return net.decode(latents.to(parameter)).float().clamp(0, 1).cpu()

    if tile_size is None:
        return torch.cat([decode_one(latent[None]) for latent in latents])
    config, up = net.config, net.config.compression
    side, margin = tile_size // up, config.decoding_reach
    return torch.cat([stitched(decode_one, latent[None], side=side, margin=margin, up=up) for latent in latents])


def _placed(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    parameter = next(net.parameters())
    return {name: tensor.to(parameter) for name, tensor in tensors.items()}


def _sample(
    net: StageC | StageB,
    plan: StagePlan[Any],
    predict: Callable[..., Tensor],
    cond: NetworkArguments,
    uncond: NetworkArguments,
    on_step: OnStep | None,
    step_arguments: StepArguments | None = None,
    noise: Noise | None = None,
    without: NetworkArguments | None = None,
) -> Tensor:
    """A plan through the library's loop; cond, uncond and without are arguments of `predict`; noise: not the plan's."""
    epsilon = plan.noise.start(*plan.size).to(next(net.parameters()))
    diffusion = diffusion_of(net.config)
    x, kept = _started(plan, epsilon, diffusion)
    caching = None if plan.settings.cache is None else CacheRun(plan.settings.cache)
    found = sample(
        predict,
        x,
        plan.settings,
        cond=cond,
        uncond=uncond,
        without=without,
        step_arguments=step_arguments,
        noise=plan.noise if noise is None else noise,
        kept=kept,
        steering=plan.steering,
        on_step=on_step,
        diffusion=diffusion,
        caching=caching,
    )
    if caching is not None:
        logger.info("%s: %s", plan.stage.replace("_", " ").title(), caching.report())
    return plan.completed(found)


def _started(plan: StagePlan[Any], epsilon: Tensor, diffusion: Diffusion) -> tuple[Tensor, Keeping | None]:
    """Where the run starts, and what it keeps."""
    if plan.start is None:
        return epsilon, plan.keeping
    latents, mask = plan.start.latents.to(epsilon), plan.start.mask
    x = diffusion.noised(latents, epsilon, torch.tensor(plan.start_log_snr(diffusion)))
    if plan.keeping is not None or mask is None:
        return x, plan.keeping
    return x, Kept(latents, mask.to(epsilon), epsilon)
