"""The options of `generate` for image prompts: images that Stage C reads beside the text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError
from ._common import fraction, read_image
from ._words import mask_of

if TYPE_CHECKING:
    from ..pipelines import ImagePrompt

HOW = ("like_combine", "like_strength", "like_range", "like_blocks", "like_noise")
"""Options for all images of --like together, by their names in the code."""
OF_LIKE = ("weight", "like_mask", *HOW)


def add_image_prompts(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group("image prompts")
    group.add_argument(
        "--like", type=Path, action="append", metavar="FILE", help="make variations of this image; may be repeated"
    )
    group.add_argument(
        "--weight",
        type=float,
        action="append",
        metavar="W",
        help="how much a --like counts, one for each of them; below 0 leads away from it; default 1",
    )
    group.add_argument(
        "--unlike",
        type=Path,
        action="append",
        metavar="FILE",
        help="an image beside the negative prompt: the new images lead away from it; may be repeated",
    )
    group.add_argument(
        "--like-combine",
        choices=("concat", "average", "subtract"),
        help="concat: each --like by itself (default); average: one between them; subtract: the first without what "
        "the others have",
    )
    group.add_argument(
        "--like-strength", type=fraction, metavar="F", help="how much all --like count, 0 (not at all) to 1 (default)"
    )
    group.add_argument(
        "--like-mask",
        action="append",
        metavar="PLACE",
        help="where they count, one for all of them or one for each: a box of left,top,right,bottom from 0 to 1, or "
        "the file of a mask, white where they count; default: everywhere",
    )
    group.add_argument(
        "--like-range",
        metavar="START,END",
        help="the part of the run in which they count, from 0 (start) to 1 (end); default 0,1",
    )
    group.add_argument(
        "--like-blocks",
        metavar="BLOCKS",
        help="the blocks of Stage C that see them: all (default), composition, style, or ranges of its depth with "
        "weights, such as 0-0.5=1,0.5-1=0.2",
    )
    group.add_argument(
        "--like-noise",
        type=fraction,
        metavar="F",
        help="noise in what the image encoder sees in them, 0 (none, default) to 1: looser variations",
    )


def check_image_prompts(args: argparse.Namespace) -> None:
    """Raises CascadeError for options that do not belong together."""
    images = len(args.like or ())
    if args.weight and len(args.weight) != images:
        raise CascadeError(f"Each --like has one --weight: {images} of one, {len(args.weight)} of the other.")
    if not images and (given := [name for name in OF_LIKE if getattr(args, name) is not None]):
        raise CascadeError(f"--{given[0].replace('_', '-')} needs --like, the image that it is about.")
    masks = len(args.like_mask or ())
    if masks > 1 and (masks != images or args.like_combine not in (None, "concat")):
        raise CascadeError(
            f"There is one --like-mask for all --like, or one for each with --like-combine concat: {images} of --like, "
            f"{masks} masks."
        )


def image_prompts_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `pipelines.generate` that were asked for.

    Raises CascadeError, InvalidImage or OSError for images, masks, a range or blocks that cannot be used.
    """
    from ..pipelines import ImagePrompt

    found: dict[str, list[ImagePrompt]] = {}
    if args.unlike:
        images = [read_image(path) for path in args.unlike]
        found["negative_images"] = [ImagePrompt(images=images)]
    if args.like:
        images, weights, how = [read_image(path) for path in args.like], args.weight, _how(args)
        masks = [mask_of(place, f"--like-mask {place}") for place in args.like_mask or ()]
        if len(masks) > 1:
            each = zip(images, weights or [1.0] * len(images), masks, strict=True)
            prompts = [ImagePrompt(images=[image], weights=[w], mask=mask, **how) for image, w, mask in each]
        else:
            prompts = [ImagePrompt(images=images, weights=weights, mask=masks[0] if masks else None, **how)]
        found["prompt_images"] = prompts
    return found


def _how(args: argparse.Namespace) -> dict[str, Any]:
    from ..editing import BlockWeights

    how: dict[str, Any] = {}
    named = {"combine": args.like_combine, "strength": args.like_strength, "noise_augmentation": args.like_noise}
    how |= {name: value for name, value in named.items() if value is not None}
    if args.like_blocks is not None:
        how["blocks"] = BlockWeights.of(args.like_blocks)
    if args.like_range is not None:
        try:
            how["start_percent"], how["end_percent"] = (fraction(end) for end in args.like_range.split(","))
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise CascadeError(
                f"--like-range {args.like_range}: write START,END from 0 to 1, such as 0,0.5."
            ) from error
    return how


def image_prompts_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """What the recipe says of them, without the folders; nothing without any."""
    about: dict[str, Any] = {}
    if args.like:
        about |= {"like": [path.name for path in args.like], "weight": args.weight or [1.0] * len(args.like)}
    if args.like_mask:
        about["like_mask"] = [Path(place).name for place in args.like_mask]
    about |= {name: value for name in HOW if (value := getattr(args, name)) is not None}
    return about | ({"unlike": [path.name for path in args.unlike]} if args.unlike else {})
