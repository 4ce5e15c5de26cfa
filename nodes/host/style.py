"""Style and content of reference images on a MODEL, and the SAMPLER that steers a run towards them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...cascade.checkpoints import ClipVisionConfig, load_model
from ...cascade.conditioning.image import preprocess
from ...cascade.diffusion import SAMPLERS, SeededNoise
from ...cascade.editing import AttentionController, ControlSteps, References, StyleAligned, StyleControl
from ...cascade.errors import CascadeError, IncompatibleCheckpoint, InvalidSettings
from ...cascade.images import fit, resize_for_latent
from ...cascade.models import StageC
from ...cascade.pipelines.style import check_references, fitted_mask, look_of, masked, style_control
from . import checks, imaging
from .attention import ATTENTION, controlled
from .autoencoders import Coder
from .editing import pixels_of, stage_c_of
from .sampling import process_of

GRADIENTS = 4
"""How many times the memory of a preview a pass forward and back takes, at most."""


@dataclass(frozen=True)
class Shown:
    """Reference images [B, 3, H, W] in [0, 1]: a style, a content or both, and the content's mask."""

    style: Tensor | None = None
    content: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, style: Tensor | None, content: Tensor | None, mask: Tensor | None) -> Shown:
        """From IMAGEs and a MASK. Raises InvalidSettings without an image, for an empty mask, or one of no content."""
        masks = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:]).float().clamp(0, 1)
        check_references(style, content, masks)
        images = [None if image is None else imaging.from_image(image) for image in (style, content)]
        return cls(images[0], images[1], masks)

    @property
    def images(self) -> list[Tensor]:
        return [image for image in (self.style, self.content) if image is not None]


def referenced(model: Any, clip_vision: Any, shown: Shown, weight: float, interval: tuple[float, float]) -> Any:
    """The MODEL whose images get the references' style and content, see `References`; itself for a weight of 0.

    Raises CascadeError for a MODEL that is no Stage C or has such a control, a part that is missing, an image encoder
    of another width; when sampling begins for references that are neither one nor as many as the images.
    """
    wanted = _free(model).config.clip_img
    start, end = interval
    if weight == 0:
        return model
    content = None if shown.content is None else masked(shown.content, shown.mask)
    seen = [None if image is None else embedding(clip_vision, image) for image in (shown.style, content)]
    if wrong := [each.shape[-1] for each in seen if each is not None and each.shape[-1] != wanted]:
        raise IncompatibleCheckpoint(
            f"This Stage C reads image embeddings of width {wanted}; those of this image encoder have {wrong[0]}: load "
            "CLIP ViT-L/14 for a released Stage C."
        )
    references = References(style=seen[0], content=seen[1], weight=weight, start_percent=start, end_percent=end)

    def checked(shape: Sequence[int]) -> AttentionController:
        references.check(shape[0])
        return references

    return controlled(model, checked)


def aligned(model: Any, weight: float, interval: tuple[float, float]) -> Any:
    """The MODEL whose images get the look of the first of their batch; itself for a weight of 0.

    Raises CascadeError for a MODEL that is no Stage C or has such a control.
    """
    _free(model)
    acting = StyleAligned(weight=weight, start_percent=interval[0], end_percent=interval[1])
    return controlled(model, lambda _: acting) if weight else model


def _free(model: Any) -> StageC:
    """The network of a MODEL that has no other control of attention."""
    net = stage_c_of(model)
    if ATTENTION in model.model_options["transformer_options"]:
        raise InvalidSettings(
            "Style Reference and Style Aligned change the attention of a model once: use one of them."
        )
    return net


def embedding(clip_vision: Any, images: Tensor) -> Tensor:
    """Image embeddings [B, 1, c] of a CLIP_VISION for images [B, 3, H, W], cut and scaled as the library does.

    Raises MissingPart where a checkpoint has none.
    """
    comfy.model_management.load_models_gpu([imaging.given(clip_vision).patcher])
    pixels = preprocess(images.to(clip_vision.load_device, torch.float32), clip_vision.image_size)
    return clip_vision.model(pixel_values=pixels)[2][:, None].float().cpu()


def image_encoder(clip_vision: Any) -> nn.Module:
    """The network of a CLIP_VISION as one that gradients pass, which they do not in the host's.

    Raises MissingPart where a checkpoint has none, CheckpointError where it is no CLIP.
    """
    with torch.inference_mode(False):
        # What the host moved in inference mode never carries a gradient, but a copy does.
        state = {name: value.clone() for name, value in imaging.given(clip_vision).get_sd().items()}
        known = getattr(clip_vision, "config", None)  # older hosts do not keep it
        config = None if known is None else ClipVisionConfig.from_transformers(known)
        return load_model(state, part="image_encoder", config=config, dtype=torch.float32).requires_grad_(False)


def load_descriptor(path: Path) -> nn.Module:
    """The style descriptor of CSD's file. Raises CheckpointError for another kind of file."""
    with torch.inference_mode(False):
        return load_model(path, part="style_descriptor", dtype=torch.float32).requires_grad_(False)


def _with_gradients(net: nn.Module) -> Callable[..., Any]:
    """The network for passes back: what the host moved in inference mode is copied, since no gradient passes it."""
    given = chain(net.named_parameters(), net.named_buffers())
    copies = {name: tensor.clone() for name, tensor in given if tensor.is_inference()}
    return lambda *args, **named: functional_call(net, copies, args, named) if copies else net(*args, **named)


@dataclass(frozen=True)
class Steered:
    """A sampler's function for the host: a step's x0 is moved towards the references, its noise stays as it is.

    The host's own samplers derive the noise from the moved x0. net: what sees, see `look_of`; it stands on the CPU
    between runs. sampler_name: one of the library's.
    """

    shown: Shown
    vae: Any
    net: nn.Module
    settings: ControlSteps
    sampler_name: str

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Tensor:
        try:
            steering = self._steering(model.inner_model, x)
            return self._run(model, x, sigmas, steering, extra_args or {}, callback)
        finally:
            with torch.inference_mode(False):
                self.net.to("cpu")

    def _run(
        self, model: Any, x: Tensor, sigmas: Tensor, steering: StyleControl, options: dict[str, Any], callback: Any
    ) -> Tensor:
        diffusion = process_of(model.inner_model.inner_model.model_sampling)
        step, levels, mask = SAMPLERS.resolve(self.sampler_name), sigmas.tolist(), options.get("denoise_mask")
        noise = SeededNoise([options.get("seed", 0) + i for i in range(len(x))], "stage_c")
        for i, (sigma, after) in enumerate(pairwise(levels)):
            predicted = model(x, sigmas[i] * x.new_ones(len(x)), **options)
            with torch.inference_mode(False):
                x0 = steering(i, len(levels) - 1, predicted.clone().float()).to(predicted)
            x0 = x0 if mask is None else predicted + mask * (x0 - predicted)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})
            if after == 0:
                return x0
            # The host's x is the network's divided by the factor a of its level.
            here, there = (_factors(diffusion, each) for each in (sigma, after))
            x = step(x0, (x - predicted) / sigma, here, there, partial(noise, x0, i)) / there[0]
        return x

    def _steering(self, guider: Any, x: Tensor) -> StyleControl:
        """The control of a run with latents of x's shape."""
        size, vae = pixels_of(x.shape), self.vae
        previews = GRADIENTS * vae.memory_used_decode(tuple(x.shape), vae.vae_dtype) * len(x)
        weights = sum(value.nbytes for value in self.net.parameters())
        with torch.inference_mode(False), torch.no_grad():
            # Both at once, so that Stage C stays loaded.
            patchers = [guider.model_patcher, vae.patcher]
            comfy.model_management.load_models_gpu(patchers, memory_required=previews + weights)
            seen = look_of(self.net.to(vae.device))
            fitted = torch.cat([fit(image, *size) for image in self.shown.images])
            mask = fitted_mask(self.shown.mask, self.shown.images[-1], size)
            previewer = _with_gradients(vae.first_stage_model.previewer)

            def placed(tensor: Tensor) -> Tensor:
                return tensor.to(vae.device, vae.vae_dtype)

            def look(images: Tensor) -> tuple[Tensor, Tensor]:
                comfy.model_management.throw_exception_if_processing_interrupted()
                return seen(images)

            latents = vae.first_stage_model.encode(placed(resize_for_latent(fitted, (x.shape[-2], x.shape[-1]))))
            return style_control(lambda found: previewer(placed(found)).float(), look, latents, mask, self.settings)


def steered_sampler(shown: Shown, vae: Any, net: nn.Module, settings: ControlSteps, sampler_name: str) -> Any:
    """The SAMPLER of `Steered`.

    Raises CascadeError for a VAE that is not the encoder and previewer, and for several styles or contents.
    """
    coder = checks.autoencoder(vae, "Stage C").first_stage_model
    if not isinstance(coder, Coder) or coder.encoder is None or coder.previewer is None:
        raise CascadeError(
            "encoder must have both the encoder and the previewer: connect Load Encoder and Previewer (Stable "
            "Cascade), with both of its files chosen."
        )
    if wrong := [len(image) for image in shown.images if len(image) != 1]:
        raise InvalidSettings(f"A run is steered towards one style and one content; there are {wrong[0]} images.")
    return comfy.samplers.KSAMPLER(Steered(shown, vae, net, settings, sampler_name))


def _factors(diffusion: Any, sigma: float) -> tuple[float, float]:
    a, b = diffusion.scaling(torch.tensor(-2 * math.log(sigma), dtype=torch.float64))
    return a.item(), b.item()
