"""Images between two images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..conditioning import ImageEncoder
from ..diffusion import slerp
from ..editing import PlacedImages, PromptImages, SeenImages
from ..images import as_rgb, fit
from .generate import RELEASED_SETTINGS, Generated, OnProgress, Run, Settings
from .networks import Parts
from .plan import Start
from .stages import encode_prompts, encode_stage_c


@torch.no_grad()
def mix(
    parts: Parts,
    first: Tensor,
    second: Tensor,
    blend_factors: Sequence[float],
    *,
    seed: int = 0,
    prompt: str = "",
    negative: str = "",
    strength: float = 0.6,
    settings: Settings = RELEASED_SETTINGS,
    on_progress: OnProgress | None = None,
) -> Generated:
    """An image for each blend factor, from `first` (0) to `second` (1), each [1, 3, H, W] in [0, 1] of any size.

    Both the latents and the image embeddings are blended by slerp. Stage C starts from the blended latents with noise
    by `strength`, and is conditioned on the blended embedding: so one object changes into the other, while blended
    latents alone (strength close to 0) give a double exposure. All images have the noise of `seed`.

    parts: all those of `generate`. Raises as `generate`.
    """
    images = [fit(as_rgb(each), *settings.final) for each in (first, second)]
    sizes, amount = settings.sizes, len(blend_factors)
    texts = parts.use("text_encoder", lambda net: encode_prompts(net, [prompt, negative]))
    embeddings = parts.use("image_encoder", lambda net: [ImageEncoder(net).encode(image) for image in images])
    latents = parts.use("effnet", lambda net: [encode_stage_c(net, image, sizes.stage_c[-2:]) for image in images])
    factors = torch.tensor(blend_factors)

    def between(pair: Sequence[Tensor]) -> Tensor:
        first, second = (x.expand(amount, *x.shape[1:]) for x in pair)
        return slerp(first, second, factors)

    run = Run(
        texts=[texts[prompt]] * amount,
        negative=texts[negative],
        images=SeenImages([PlacedImages(images=PromptImages(between(embeddings), (1.0,)))]),
        seeds=[seed] * amount,
        settings=replace(settings, stage_c=settings.stage_c.with_strength(strength)),
        start_c=Start(latents=between(latents)),
        on_progress=on_progress,
    )
    return run(parts)
