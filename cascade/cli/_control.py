"""`--control`: ControlNets, and their hints made of images."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CascadeError
from ._common import fraction, read_image

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import ControlNetConfig
    from ..pipelines import Control, Parts

EDGES, IMAGE, INPAINTING, LATENTS, FACES = 1, 3, 4, 16, 512
"""Channels of the hint that a ControlNet reads."""
SUPER_RESOLUTION = 2
"""How many times the hint's size the image has, as released."""


class Given(NamedTuple):
    """One --control."""

    file: str
    hint: Path
    strength: float

    @property
    def name(self) -> str:
        """For a recipe: without folders."""
        return f"{Path(self.file).name}={self.hint.name}={self.strength:g}"


def add_control(parser: argparse.ArgumentParser) -> None:
    """The options of `load_controls`."""
    group = parser.add_argument_group("ControlNet")
    group.add_argument(
        "--control",
        action="append",
        default=[],
        type=_given,
        metavar="FILE=HINT[=STRENGTH]",
        help="ControlNet file (canny, sketch, inpainting, super_resolution: those of the tiny cascade), the image that "
        "its hint is made from, and how strongly it acts, default 1; may be repeated",
    )
    group.add_argument(
        "--control-start",
        type=fraction,
        default=0.0,
        metavar="F",
        help="where in sampling ControlNets begin to act, 0 (start) to 1 (end); default 0",
    )
    group.add_argument(
        "--control-end",
        type=fraction,
        default=1.0,
        metavar="F",
        help="where in sampling ControlNets stop acting, 0 (start) to 1 (end); default 1",
    )
    group.add_argument(
        "--control-as-is",
        action="store_true",
        help="for a ControlNet that reads edges: HINT shows them already, white on black, and is used as it is",
    )


def _given(text: str) -> Given:
    file, *rest = text.split("=")
    if not file or len(rest) not in (1, 2) or not rest[0]:
        raise argparse.ArgumentTypeError(f"{text} is not FILE=HINT or FILE=HINT=STRENGTH")
    hint, number = (*rest, "1")[:2]
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise argparse.ArgumentTypeError(f"{text}: {number!r} is not a strength; write FILE=HINT=0.8")
    return Given(file, Path(hint), strength)


def load_controls(args: argparse.Namespace) -> list[Control]:
    """The ControlNets, each with the image [1, 3, H, W] in [0, 1] in place of the hint that `with_hints` makes from it.

    Raises CascadeError for options that do not fit together, and what reading and loading files raises.
    """
    if not args.control_start <= args.control_end:
        raise CascadeError(f"--control-start {args.control_start:g} is above --control-end {args.control_end:g}.")
    return [_loaded(args, given) for given in args.control]


def _loaded(args: argparse.Namespace, given: Given) -> Control:
    from .. import tiny
    from ..checkpoints import load_model
    from ..pipelines import Control

    image = read_image(given.hint)
    path = tiny.path(tiny.CONTROLS[given.file]) if given.file in tiny.CONTROLS else given.file
    net = load_model(path, part="controlnet")
    channels = net.config.in_channels
    if channels not in (EDGES, IMAGE, INPAINTING, LATENTS):
        cure = " It describes faces: use the node Identity Hint in ComfyUI." if channels == FACES else ""
        raise CascadeError(
            f"{path}: this ControlNet reads {channels} channels; --control cannot make such a hint from an image.{cure}"
        )
    start, end = args.control_start, args.control_end
    return Control(net=net, hint=image, strength=given.strength, start_percent=start, end_percent=end)


def reads(controls: list[Control], channels: int) -> bool:
    """Whether one of the ControlNets reads hints of so many channels."""
    return any(control.net.config.in_channels == channels for control in controls)


def with_hints(
    args: argparse.Namespace, controls: list[Control], parts: Parts, size: tuple[int, int], mask: Tensor | None
) -> list[Control]:
    """The ControlNets of `load_controls`, where `parts` are, with hints for images of a height and width.

    mask: [1, 1, H, W], for inpainting. Raises CascadeError where it is missing or empty, MissingPart where the encoder
    is.
    """

    def hint(control: Control) -> Tensor:
        channels = control.net.config.in_channels
        if channels == LATENTS:
            return _latents(control.hint, parts, size)
        return _image_hint(control.net.config, control.hint, size, mask, args.control_as_is)

    return [replace(control, net=control.net.to(parts.device, parts.dtype), hint=hint(control)) for control in controls]


def _image_hint(
    config: ControlNetConfig, image: Tensor, size: tuple[int, int], mask: Tensor | None, as_is: bool
) -> Tensor:
    """The hint [1, channels, H, W] of a ControlNet that reads lines, an image, or an image with a mask."""
    from ..images import as_mask, canny, fit, inpaint_hint, resize_mask, sketch

    fitted = fit(image, *size)
    if config.in_channels == EDGES:
        lines = sketch if config.hint == "sketch" else canny
        return fitted.mean(dim=1, keepdim=True) if as_is else lines(fitted)
    if config.in_channels == IMAGE:
        return fitted
    if mask is None:
        raise CascadeError("--control: an inpainting ControlNet needs --mask, white where to generate again.")
    return inpaint_hint(fitted, resize_mask(as_mask(mask), size))


def _latents(image: Tensor, parts: Parts, size: tuple[int, int]) -> Tensor:
    """The hint [1, 16, h, w] of a super-resolution ControlNet."""
    import torch

    from ..images import fit, super_resolution_hint
    from ..images.hints import GRID
    from ..pipelines.stages import encode_stage_c

    height, width = (side // SUPER_RESOLUTION for side in size)
    small = fit(image, height, width)
    grid = max(1, round(height / GRID)), max(1, round(width / GRID))

    @torch.no_grad()
    def hint(encoder: Any) -> Tensor:
        return super_resolution_hint(small, lambda images: encode_stage_c(encoder, images, grid), SUPER_RESOLUTION)

    return parts.use("effnet", hint)


def control_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """What a recipe says of them; nothing without any."""
    if not args.control:
        return {}
    return {
        "control": [given.name for given in args.control],
        "control_start": args.control_start,
        "control_end": args.control_end,
        **({"control_as_is": True} if args.control_as_is else {}),
    }
