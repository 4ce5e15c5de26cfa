"""IMAGE and MASK of the host, and the networks that look at them."""

from __future__ import annotations

from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ...cascade.diffusion import blend, sequence
from ...cascade.errors import CascadeError, InvalidPicture
from ...cascade.images import as_mask, as_rgb, mask_of_latent, resize_for_latent, resize_mask, three_quarters
from . import guards
from .decoding import TILE

ONE_EACH = "cascade_one_each"
"""Of an entry of unclip_conditioning, beside what the host keeps in it."""


def from_image(image: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] of an IMAGE [B, H, W, c]: grey and alpha too. Raises InvalidPicture."""
    if image.ndim != 4:
        raise InvalidPicture(f"This takes pictures [batch, height, width, channels]; these are {list(image.shape)}.")
    return as_rgb(image.movedim(-1, 1))


def to_image(pictures: Tensor) -> Tensor:
    """An IMAGE [B, H, W, c] of its own of pictures or a hint [B, c, H, W]."""
    return pictures.movedim(1, -1).contiguous().to(comfy.model_management.intermediate_device())


def masks_over(mask: Tensor, pictures: Tensor, node: str, cure: str = "") -> Tensor:
    """A MASK [1 or B, 1, H, W] laid over pictures [B, 3, H, W]; node and cure are for the error.

    Raises CascadeError where they are of other numbers, InvalidPicture for an empty mask.
    """
    masks = resize_mask(as_mask(mask), tuple(pictures.shape[-2:]))
    if len(masks) not in (1, len(pictures)):
        raise CascadeError(f"{node}: {len(masks)} masks for {len(pictures)} pictures.{cure}")
    return masks


def masked(samples: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """A LATENT with what of it is drawn anew: a mask [B, 1, H, W] of any size, or None for no mask."""
    if mask is None:
        return {"samples": samples}
    return {"samples": samples, "noise_mask": mask_of_latent(mask, tuple(samples.shape[-2:]))}


def encode_stage_c(vae: Any, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents [B, 16, *size] of pictures [B, 3, H, W], with the released image to image's preprocessing."""
    return vae.encode(resize_for_latent(pictures, size).movedim(1, -1))


def encode_effnet(vae: Any, pictures: Tensor, compression: float) -> Tensor:
    """Latents [B, 16, h, w] of pictures [B, 3, H, W], with the released reconstruction's preprocessing."""
    return vae.encode(three_quarters(pictures, compression).movedim(1, -1))


def encode_stage_b(vae: Any, pictures: Tensor) -> Tensor:
    """Stage A's latents [B, 4, ceil(H / 4), ceil(W / 4)] of pictures [B, 3, H, W]; large ones in tiles."""
    down = vae.downscale_ratio
    bottom, right = (-side % down for side in pictures.shape[-2:])
    # The host would cut what is no multiple, on both sides.
    padded = F.pad(pictures, (0, right, 0, bottom), mode="replicate")
    needed = vae.memory_used_encode((1, *padded.shape[1:]), vae.vae_dtype)
    image = padded.movedim(1, -1)
    if guards.too_large(needed, vae.device):
        return vae.encode_tiled(image, tile_x=TILE, tile_y=TILE, overlap=TILE // 8)
    return torch.cat([vae.encode(each[None]) for each in image])


def see(clip_vision: Any, pictures: Tensor) -> Any:
    """CLIP_VISION_OUTPUT of pictures [B, 3, H, W]."""
    return clip_vision.encode_image(pictures.movedim(1, -1))


def seen_as_one(outputs: list[Any], weights: list[float]) -> Any:
    """A CLIP_VISION_OUTPUT of one embedding, mixed of those of all pictures by their weights."""
    pairs = [
        (embedding[None], weight)
        for output, weight in zip(outputs, weights, strict=True)
        for embedding in output.image_embeds
    ]
    return _seen(blend([embedding for embedding, _ in pairs], [weight for _, weight in pairs]))


def seen_in_steps(outputs: list[Any], frames: int) -> Any:
    """A CLIP_VISION_OUTPUT of an embedding a frame, from the first of all pictures to the last along the sphere.

    Raises CascadeError where there is one picture alone.
    """
    seen = torch.cat([output.image_embeds for output in outputs])
    if len(seen) < 2:
        raise CascadeError(f"{frames} frames lead from one picture to another: give it two pictures or more.")
    return _seen(sequence(seen, frames))


def _seen(embeddings: Tensor) -> Any:
    output = comfy.clip_vision.Output()
    output["image_embeds"] = embeddings
    return output


def told(conditioning: Any, outputs: list[Any], weights: list[float], *, one_each: bool = False) -> Any:
    """The conditioning with pictures to vary, beside those that it has.

    one_each: each picture of a batch is for one latent of the sampler's batch, not all of them for every one.
    """
    entries = [
        {"clip_vision_output": output, "strength": weight, "noise_augmentation": 0.0, ONE_EACH: one_each}
        for output, weight in zip(outputs, weights, strict=True)
    ]
    return [
        [embedding, {**extras, "unclip_conditioning": [*extras.get("unclip_conditioning", ()), *entries]}]
        for embedding, extras in conditioning
    ]
