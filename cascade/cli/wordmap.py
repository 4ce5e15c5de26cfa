"""`python -m cascade wordmap`: where an image shows the words of its prompt."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._common import (
    Bars,
    add_networks,
    add_stages,
    add_tile,
    output_paths,
    parts_of,
    recipe_of,
    save,
    say_tiny_is_used,
    settings_of,
)


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "wordmap",
        help="where an image shows the words of its prompt",
        description="Make an image of a prompt, and write where it shows a word as a gray image: white where it shows "
        "it most. Such a map can be the --mask of generate.",
    )
    parser.add_argument("prompt", help="what the image should show")
    parser.add_argument(
        "--word",
        required=True,
        action="append",
        metavar="WORD",
        help="a word of the prompt, or several that follow each other; may be repeated, with a file for each",
    )
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what it should not show; default: empty")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the image; default 0")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the next free cascade-N.png")
    parser.add_argument(
        "--comparison", action="store_true", help="write the image, and the map over it, side by side in one file"
    )
    add_stages(parser)
    add_tile(parser)
    add_networks(parser)


def run(args: argparse.Namespace) -> int:
    """Make the image and write the maps."""
    paths = output_paths(args.output, len(args.word))
    settings = settings_of(args)
    if not args.models:
        say_tiny_is_used("" if args.lora else args.prompt)
    import torch

    from ..editing import lit
    from ..images import to_pillow
    from ..pipelines import word_maps

    with Bars() as bars:
        made, maps = word_maps(
            parts_of(args),
            args.prompt,
            args.word,
            seeds=[args.seed],
            negative=args.negative,
            settings=settings,
            on_progress=bars,
        )
    image = made.images[0]
    for path, word in zip(paths, args.word, strict=True):
        shown = maps[word][0].expand(3, -1, -1)
        over = torch.cat([image, lit(image, shown)], dim=-1)
        about = {"prompt": args.prompt, "word": word, "negative": args.negative, "seed": args.seed}
        save(to_pillow(over if args.comparison else shown), path, recipe_of(args, settings, **about))
        print(path)
    return 0
