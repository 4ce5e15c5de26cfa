"""Instruct networks on a MODEL and its CONDITIONINGs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...cascade.adapters import read_instruct
from ...cascade.errors import CascadeError
from . import adapters, checks, control


class LatentControl(control.CascadeControl):
    """A ControlNet that reads latents, position by position."""

    def _read_hint(self, hint: Tensor, size: tuple[int, ...], device: torch.device) -> list[Tensor | None]:
        found = tuple(hint.shape[-2:])
        if found != size:
            raise CascadeError(
                f"Edit by Instruction (Stable Cascade): its stage_c is {found[0]} x {found[1]}, and the sampler's "
                f"latent_image {size[0]} x {size[1]}: connect the same latent to both."
            )
        return self.net(hint.to(device, torch.float32))


def instruct(
    model: Any, positive: Any, negative: Any, latent: dict[str, Any], path: Path, image_cfg: float, strength: float
) -> tuple[Any, Any, Any]:
    """MODEL and both CONDITIONINGs for an edit of the image of Stage C's LATENT, by the instruct network of a file.

    Raises CascadeError for a MODEL or LATENT of another kind, and for a network that was made for another Stage C.
    """
    checks.model(model, "Stage C")
    samples = checks.latents(latent, "Stage C")
    with torch.inference_mode(False):
        network = read_instruct(path)
        net = control.built(LatentControl, network.net.config, network.net.state_dict())
    if strength == 0:
        return model, positive, negative
    model, _, _ = adapters.apply(model, None, network.lora, strength, strength)
    if image_cfg != 1:
        # A clone already: with the LoRA.
        model.set_model_sampler_post_cfg_function(_guided_by_image(image_cfg))
    positive, negative = control.apply(positive, negative, net, samples.movedim(1, -1), strength, 0.0, 1.0)
    return model, positive, negative


def _guided_by_image(scale: float) -> Callable[[dict[str, Any]], Tensor]:
    """The library's `Guidance.image_cfg` as a function of the host, which it calls after its guidance by prompts."""

    def guided(args: dict[str, Any]) -> Tensor:
        if args["uncond"] is None:
            return args["denoised"]
        without = [{name: value for name, value in each.items() if name != "control"} for each in args["uncond"]]
        # Three conditions: what is done for steps of two, such as caching, leaves these alone.
        _, plain, _ = comfy.samplers.calc_cond_batch(
            args["model"], [None, without, None], args["input"], args["sigma"], args["model_options"]
        )
        return args["denoised"] + (scale - 1) * (args["uncond_denoised"] - plain)

    return guided
