"""`edit FILE`: an image of a file inverted, and changed by another prompt."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError
from ._common import NEEDED, Bars, parts_of, read_image, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..editing import EditStrength
    from ..pipelines import Inversion, Parts, Settings


def check_given(args: argparse.Namespace) -> None:
    """Raises CascadeError for options that do not belong together."""
    if args.file is None:
        for name in ("skip", "mask", "inversion"):
            if getattr(args, name):
                raise CascadeError(f"--{name} needs FILE, an image to change.")
    elif args.inversion is not None and not args.inversion.absolute().parent.is_dir():
        raise CascadeError(f"{args.inversion}: there is no folder {args.inversion.absolute().parent}.")


def edited_image(
    args: argparse.Namespace, image: Tensor, strength: EditStrength, settings: Settings
) -> tuple[list[Tensor], dict[str, Any]]:
    """The image [1, 3, H, W] at its new size and the same changed, and what the recipe says of them."""
    from ..images import as_mask, fit
    from ..pipelines import edit_images
    from ..pipelines.inversion import check_skip

    check_skip(args.skip, settings.stage_c.steps)
    _check_prompts(args)
    mask = None if args.mask is None else as_mask(read_image(args.mask)[:, :1])
    parts = parts_of(args, [*NEEDED, "effnet"])
    inversion = _inversion(args, parts, image, settings)
    with Bars() as bars:
        result = edit_images(
            parts,
            image,
            inversion,
            args.to,
            seeds=[args.seed],
            skip=args.skip,
            strength=strength,
            weights=dict(args.weight),
            mask=mask,
            settings=settings,
            on_progress=bars,
        )
    about = {"file": args.file.name, "skip": args.skip} | ({"mask": args.mask.name} if args.mask else {})
    return [fit(image, *settings.final)[0], result.images[0]], about


def _check_prompts(args: argparse.Namespace) -> None:
    """Raises InvalidSettings for prompts and words that cannot be used, before the image is inverted."""
    from torch import nn

    from ..conditioning import TextEncoder
    from ..conditioning.text import LENGTH
    from ..editing import PromptTokens, align

    encoder = TextEncoder(nn.Identity())
    prompt, to = (PromptTokens.of(encoder, each) for each in (args.prompt, args.to))
    align(prompt, to, LENGTH * max(len(encoder.chunks(each.prompt)) for each in (prompt, to)))
    for word, _ in args.weight:
        to.find(PromptTokens.of(encoder, word))


def _inversion(args: argparse.Namespace, parts: Parts, image: Tensor, settings: Settings) -> Inversion:
    """The inversion that is kept for the image, or a new one."""
    from ..pipelines import Inversion, invert_images

    path = args.inversion
    if path is not None and path.exists():
        found = Inversion.load(path)
        if (found.made.prompt, found.made.negative) != (args.prompt, args.negative):
            raise CascadeError(
                f"{path}: this inversion was made with the prompt {found.made.prompt!r} and the negative prompt "
                f"{found.made.negative!r}: give the same, or another --inversion."
            )
        say(f"Using the inversion {path}.")
        return found
    with Bars() as bars:
        made = invert_images(
            parts,
            image,
            args.prompt,
            seeds=[args.seed],
            negative=args.negative,
            settings=settings,
            on_progress=bars,
        )
    if path is not None:
        made.save(path)
    return made
