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
    output_paths,
    parts_of,
    read_image,
    recipe_of,
    save,
    settings_of,
    share,
)


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "mix",
        help="the images between two images",
        description="Mix two images: their latents and what CLIP sees in them, along the sphere. With --frames, a "
        "sequence from the first to the second.",
    )
    parser.add_argument("first", type=Path, metavar="FIRST", help="an image file; the result has its proportions")
    parser.add_argument("second", type=Path, metavar="SECOND", help="an image file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the next free cascade-N.png")
    parser.add_argument("--share", type=float, default=0.5, help="of the second image, 0 to 1; default %(default)s")
    parser.add_argument("--frames", type=count, metavar="N", help="so many images, from the first to the second")
    parser.add_argument(
        "--strength", type=share, default=0.6, help="how much is drawn anew from the mix; default %(default)s"
    )
    parser.add_argument("--prompt", default="", help="what the images show; default: nothing said")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, the same for all; default 0")
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

    shares = [args.share] if number == 1 else [i / (number - 1) for i in range(number)]
    parts = parts_of(args, [*NEEDED, "effnet", "image_encoder"])
    with Bars() as bars:
        result = mix(
            parts,
            first,
            second,
            shares,
            seed=args.seed,
            prompt=args.prompt,
            strength=args.strength,
            settings=settings,
            on_progress=bars,
        )
    for path, part, drawn in zip(paths, shares, result.images, strict=True):
        about = {"mix": [args.first.name, args.second.name], "share": part, "strength": args.strength}
        about |= {"prompt": args.prompt, "seed": args.seed}
        save(to_pillow(drawn), path, recipe_of(args, settings, **about))
        print(path)
    return 0
