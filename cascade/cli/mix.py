"""`python -m cascade mix`: the images between two images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._common import (
    NEEDED,
    Bars,
    add_networks,
    add_stages,
    add_tile,
    count,
    fraction,
    output_paths,
    parts_of,
    read_image,
    recipe_of,
    save,
    settings_of,
    strength,
)


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "mix",
        help="the images between two images",
        description="Make an image between two images, from their mixed latents and their mixed CLIP image embeddings. "
        "With --frames, a sequence from the first to the second.",
    )
    parser.add_argument("first", type=Path, metavar="FIRST", help="an image file; the result has its proportions")
    parser.add_argument("second", type=Path, metavar="SECOND", help="an image file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the next free cascade-N.png")
    parser.add_argument(
        "--blend-factor",
        type=fraction,
        default=0.5,
        metavar="F",
        help="how much of the second image is in the result, 0 to 1; default %(default)s",
    )
    parser.add_argument("--share", dest="blend_factor", type=fraction, help=argparse.SUPPRESS)
    parser.add_argument(
        "--frames", type=count, metavar="N", help="make N images, from the first to the second; ignores --blend-factor"
    )
    parser.add_argument(
        "--strength",
        type=strength,
        default=0.6,
        metavar="F",
        help="how much the mixed latents may change, above 0 up to 1; default %(default)s",
    )
    parser.add_argument("--prompt", default="", help="what the images show; default: empty")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise, the same for all; default 0")
    add_stages(parser)
    add_tile(parser)
    add_networks(parser)


def run(args: argparse.Namespace) -> int:
    """Make the images and write them; 0."""
    number = args.frames or 1
    paths = output_paths(args.output, number)
    first, second = read_image(args.first), read_image(args.second)
    settings = settings_of(args, first)
    from ..images import to_pillow
    from ..pipelines import mix

    factors = [args.blend_factor] if number == 1 else [i / (number - 1) for i in range(number)]
    parts = parts_of(args, [*NEEDED, "effnet", "image_encoder"])
    with Bars() as bars:
        result = mix(
            parts,
            first,
            second,
            factors,
            seed=args.seed,
            prompt=args.prompt,
            strength=args.strength,
            settings=settings,
            on_progress=bars,
        )
    for path, factor, image in zip(paths, factors, result.images, strict=True):
        about = {"mix": [args.first.name, args.second.name], "blend_factor": factor, "strength": args.strength}
        about |= {"prompt": args.prompt, "seed": args.seed}
        save(to_pillow(image), path, recipe_of(args, settings, **about))
        print(path)
    return 0
