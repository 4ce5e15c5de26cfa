"""`python -m cascade generate`: a prompt, and images to start from or to vary, to images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError
from . import _prompts
from ._common import (
    NEEDED,
    TINY_SIDE,
    Bars,
    add_networks,
    add_stages,
    add_tile,
    count,
    output_paths,
    parts_of,
    read_image,
    recipe_of,
    save,
    say_tiny_is_used,
    settings_of,
    strength,
)
from ._control import INPAINTING, LATENTS, add_control, control_recipe, load_controls, reads, with_hints
from ._image_prompts import add_image_prompts, check_image_prompts, image_prompts_of, image_prompts_recipe
from ._ip_adapter import add_ip_adapter, ip_images, ip_needs, ip_recipe
from ._prior import add_prior, prior_of, prior_recipe
from ._style import add_style, style_needs, style_of, style_recipe, with_descriptor
from ._words import region_of, without_folder

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipelines import HighRes, Parts

DESCRIPTION = """Make images from a prompt: with the tiny cascade that ships with this package, or, with --models,
with the released networks. --image starts from an image, --like makes variations of one or several, --control gives
outlines and the like to follow."""
EXAMPLES = """examples:
  python -m cascade generate "a large red circle on a blue background, left" -o circle.png
  python -m cascade generate "a small yellow star" --negative red --number 4 --seed 8
  python -m cascade generate "a green square" --image circle.png --strength 0.6 -o square.png
  python -m cascade generate "" --like circle.png --number 4
  python -m cascade generate "a large yellow circle" --control canny=circle.png -o yellow.png
  python -m cascade generate "a white background" --region "0,0,0.5,0.5=a red circle on a white background"
  python -m cascade generate "an owl in the snow" --models ComfyUI/models --width 1280 --height 832 -o owl.png
  python -m cascade generate --prompts prompts.txt -o images
  python -m cascade generate "an owl" --models ComfyUI/models --enlarge 2 --tile 1024 -o large.png"""


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "generate",
        help="make images from a prompt, and from images",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", nargs="?", help="what the image should show")
    parser.add_argument(
        "--negative", default="", metavar="PROMPT", help="what the image should not show; default: empty"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="default: the next free cascade-N.png; with --prompts the folder for the images",
    )
    parser.add_argument("--number", type=count, default=1, metavar="N", help="how many images; default 1")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the first image, the next has one more; default 0"
    )
    add_stages(parser)
    group = parser.add_argument_group("images to start from")
    group.add_argument("--image", type=Path, metavar="FILE", help="image to start from (image to image)")
    group.add_argument(
        "--strength",
        type=strength,
        default=0.7,
        metavar="F",
        help="how much of --image Stage C generates again, above 0 up to 1 (all of it); default %(default)s",
    )
    group.add_argument(
        "--strength-b",
        type=strength,
        default=1.0,
        metavar="F",
        help="the same for Stage B: below 1 keeps fine detail of --image; default %(default)s",
    )
    group.add_argument(
        "--as-released",
        action="store_true",
        help="add less noise to --image than the sampler expects, as the released code does: the result is closer to "
        "the image and smoother",
    )
    group.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="mask over --image, and over the HINT of an inpainting ControlNet: white is generated again, black stays "
        "as it is",
    )
    add_prior(group)
    add_image_prompts(parser)
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="PLACE=PROMPT",
        help="a prompt for a part of the image, in addition to the prompt for all of it; PLACE is a box of "
        "left,top,right,bottom from 0 to 1, or the file of a mask, white where the prompt acts; may be repeated",
    )
    add_control(parser)
    add_style(parser)
    add_ip_adapter(parser)
    group = parser.add_argument_group("large images")
    group.add_argument(
        "--enlarge",
        type=float,
        default=1.0,
        metavar="TIMES",
        help="sample Stage C a second time on latents enlarged so many times, 0.25 to 16; default 1 (off)",
    )
    group.add_argument(
        "--high-res",
        type=Path,
        metavar="FILE",
        help="high-res guides (ultrapixel_t2i.safetensors; tiny: those of the tiny cascade) for images of more than "
        "about 1.5 megapixels: Stage C first makes the image at the usual size, then follows it at the large one",
    )
    group.add_argument(
        "--high-res-weight",
        type=float,
        default=1.0,
        metavar="F",
        help="how strongly the guides act, 0 (not at all) to 1 (as trained) and above; default 1",
    )
    add_tile(group)
    group = parser.add_argument_group("many images")
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="an image for each line: .txt (a prompt), .csv (with a header) or .jsonl (an object); a line can give its "
        "own negative, seed, width, height, steps, cfg and so on. The same command continues where it was stopped; "
        "under torchrun the lines are divided among the processes",
    )
    group.add_argument(
        "--batch-size",
        type=count,
        default=1,
        metavar="N",
        help="lines with the same settings sampled together; default 1",
    )
    add_networks(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Make the images and write them; 0, or with --prompts 1 if a line failed."""
    if args.prompts is not None:
        _prompts.check(args)
        _check(args)
        return _prompts.run(args, _about_images(args), _high_res)
    if args.prompt is None:
        raise CascadeError("There is no prompt: give one, or --prompts FILE.")
    paths = output_paths(args.output, args.number)
    _check(args)
    controls = load_controls(args)
    if args.mask is not None and args.image is None and not reads(controls, INPAINTING):
        raise CascadeError("--mask needs --image, the image that it belongs to, or an inpainting ControlNet.")
    image = None if args.image is None else read_image(args.image)
    mask = None if args.mask is None else read_image(args.mask)[:, :1]
    shape = controls[0].hint if image is None and controls else image
    settings = replace(settings_of(args, shape), enlarge=args.enlarge)
    regions = [region_of(text) for text in args.region]
    image_prompts = image_prompts_of(args)
    if not args.models:
        say_tiny_is_used("" if args.lora else args.prompt)
    from ..images import to_pillow
    from ..pipelines import generate

    seeds = [args.seed + i for i in range(args.number)]
    needed = [*NEEDED, *style_needs(args), *ip_needs(args)]
    needed += ["effnet"] if args.image is not None or reads(controls, LATENTS) else []
    parts = parts_of(args, list(dict.fromkeys([*needed, *(["image_encoder"] if image_prompts else [])])))
    parts = with_descriptor(args, parts)
    controls = with_hints(args, controls, parts, settings.final, mask)
    with Bars() as bars:
        result = generate(
            parts,
            [args.prompt] * args.number,
            seeds=seeds,
            negative=args.negative,
            source=_source(args, image, mask),
            **image_prompts,
            prior=prior_of(args, parts),
            controls=controls,
            high_res=_high_res(args, parts),
            regions=regions,
            style=style_of(args),
            style_aligned=args.style_aligned,
            ip_adapters=ip_images(args, parts),
            settings=settings,
            on_progress=bars,
        )
    for path, seed, made in zip(paths, seeds, result.images, strict=True):
        about = {"prompt": args.prompt, "negative": args.negative, "seed": seed, **_about_images(args)}
        save(to_pillow(made), path, recipe_of(args, settings, **about))
        print(path)
    return 0


def _check(args: argparse.Namespace) -> None:
    check_image_prompts(args)
    if args.high_res is not None and args.enlarge != 1:
        raise CascadeError("--high-res and --enlarge are two ways to a large image; use one of them.")
    if not 0.25 <= args.enlarge <= 16:
        raise CascadeError(f"--enlarge takes 0.25 to 16, not {args.enlarge:g}.")


def _source(args: argparse.Namespace, image: Tensor | None, mask: Tensor | None) -> Any:
    if image is None:
        return None
    from ..pipelines import ImageToImage

    return ImageToImage(
        images=image.expand(args.number, -1, -1, -1),
        strength=args.strength,
        strength_b=args.strength_b,
        mask=mask,
        as_released=args.as_released,
    )


def _high_res(args: argparse.Namespace, parts: Parts) -> HighRes | None:
    """The high-res guides that were asked for, where `parts` are."""
    if args.high_res is None:
        return None
    from .. import tiny
    from ..checkpoints import load_model
    from ..pipelines import HighRes

    path = tiny.path(tiny.GUIDES) if str(args.high_res) == "tiny" else args.high_res
    guides = load_model(path, part="high_res_guides", dtype=parts.dtype, device=parts.device)
    size = {} if args.models else {"resolution": TINY_SIDE}
    return HighRes(guides=guides, weight=args.high_res_weight, **size)


def _about_images(args: argparse.Namespace) -> dict[str, Any]:
    """What the recipe says of them; nothing without any."""
    about: dict[str, Any] = {}
    if args.image is not None:
        about |= {"image": args.image.name, "strength": args.strength, "strength_b": args.strength_b}
        about |= {"as_released": True} if args.as_released else {}
    if args.mask is not None:
        about["mask"] = args.mask.name
    if args.high_res is not None:
        about |= {"high_res": args.high_res.name, "high_res_weight": args.high_res_weight}
    if args.region:
        about["region"] = [without_folder(text) for text in args.region]
    about |= image_prompts_recipe(args) | prior_recipe(args) | ip_recipe(args) | control_recipe(args)
    return about | style_recipe(args) | ({} if args.enlarge == 1 else {"enlarge": args.enlarge})
