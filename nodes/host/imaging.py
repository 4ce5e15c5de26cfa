"""IMAGE and MASK of the host, and the networks that encode them."""

from __future__ import annotations

from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ...cascade.diffusion import blend, sequence
from ...cascade.errors import CascadeError, InvalidImage, MissingPart
from ...cascade.images import as_mask, as_rgb, mask_of_latent, resize_for_latent, resize_mask, three_quarters
from . import checks
from .decoding import TILE

ONE_EACH = "cascade_one_each"
"""A key of our own in an entry of unclip_conditioning."""


def from_image(image: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] of an IMAGE [B, H, W, c]: gray and alpha too. Raises InvalidImage."""
    if image.ndim != 4:
        raise InvalidImage(f"This takes images [batch, height, width, channels]; these are {list(image.shape)}.")
    return as_rgb(image.movedim(-1, 1))


def to_image(images: Tensor) -> Tensor:
    """An IMAGE [B, H, W, c] of its own of images or a hint [B, c, H, W]."""
    return images.movedim(1, -1).contiguous().to(comfy.model_management.intermediate_device())


def masks_over(mask: Tensor, images: Tensor, node: str, cure: str = "") -> Tensor:
    """A MASK [1 or B, 1, H, W] laid over images [B, 3, H, W]; node and cure are for the error.

    Raises CascadeError where they are of other numbers, InvalidImage for an empty mask.
    """
    masks = resize_mask(as_mask(mask), images.shape[-2:])
    if len(masks) not in (1, len(images)):
        raise CascadeError(f"{node}: {len(masks)} masks for {len(images)} images.{cure}")
    return masks


def masked(samples: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """A LATENT with the mask of what is generated again: [B, 1, H, W] of any size, or None for no mask."""
    if mask is None:
        return {"samples": samples}
    return {"samples": samples, "noise_mask": mask_of_latent(mask, tuple(samples.shape[-2:]))}


def encode_stage_c(vae: Any, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents [B, 16, *size] of images [B, 3, H, W], with the released image to image's preprocessing."""
    return vae.encode(resize_for_latent(images, size).movedim(1, -1))


def encode_effnet(vae: Any, images: Tensor, compression: float) -> Tensor:
    """Latents [B, 16, h, w] of images [B, 3, H, W], with the released reconstruction's preprocessing."""
    return vae.encode(three_quarters(images, compression).movedim(1, -1))


def encode_stage_b(vae: Any, images: Tensor) -> Tensor:
    """Stage A's latents [B, 4, ceil(H / 4), ceil(W / 4)] of images [B, 3, H, W]; large ones in tiles."""
    down = vae.downscale_ratio
    bottom, right = (-side % down for side in images.shape[-2:])
    # The host would crop to a multiple, on both sides.
    padded = F.pad(images, (0, right, 0, bottom), mode="replicate")
    needed = vae.memory_used_encode((1, *padded.shape[1:]), vae.vae_dtype)
    image = padded.movedim(1, -1)
    if checks.too_large(needed, vae.device):
        return vae.encode_tiled(image, tile_x=TILE, tile_y=TILE, overlap=TILE // 8)
    return torch.cat([vae.encode(each[None]) for each in image])


def given(clip_vision: Any) -> Any:
    """A CLIP_VISION that is there. Raises MissingPart where a checkpoint has none."""
    if clip_vision is None:
        raise MissingPart("There is no image encoder: the checkpoint that was loaded has none.")
    return clip_vision


def encode_vision(clip_vision: Any, images: Tensor) -> Any:
    """CLIP_VISION_OUTPUT of images [B, 3, H, W]. Raises MissingPart without an image encoder."""
    given(clip_vision)
    return clip_vision.encode_image(images.movedim(1, -1))


def blend_outputs(outputs: list[Any], weights: list[float]) -> Any:
    """A CLIP_VISION_OUTPUT of one embedding, mixed of those of all images by their weights."""
    pairs = [
        (embedding[None], weight)
        for output, weight in zip(outputs, weights, strict=True)
        for embedding in output.image_embeds
    ]
    return output_of(blend([embedding for embedding, _ in pairs], [weight for _, weight in pairs]))


def frame_outputs(outputs: list[Any], frames: int) -> Any:
    """A CLIP_VISION_OUTPUT of an embedding a frame, from the first of all images to the last along the sphere.

    Raises CascadeError for a single image.
    """
    seen = torch.cat([output.image_embeds for output in outputs])
    if len(seen) < 2:
        raise CascadeError(f"{frames} frames need two images or more, to go from one to another.")
    return output_of(sequence(seen, frames))


def output_of(embeddings: Tensor) -> Any:
    """A CLIP_VISION_OUTPUT of image embeddings [n, c]."""
    output = comfy.clip_vision.Output()
    output["image_embeds"] = embeddings
    return output


def with_image_prompts(conditioning: Any, outputs: list[Any], weights: list[float], *, one_each: bool = False) -> Any:
    """The conditioning with more images to vary.

    one_each: each image of a batch is for one latent of the sampler's batch, instead of all images for every latent.
    """
    entries = [
        {"clip_vision_output": output, "strength": weight, "noise_augmentation": 0.0, ONE_EACH: one_each}
        for output, weight in zip(outputs, weights, strict=True)
    ]
    return [
        [embedding, {**extras, "unclip_conditioning": [*extras.get("unclip_conditioning", ()), *entries]}]
        for embedding, extras in conditioning
    ]
