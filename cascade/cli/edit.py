"""`python -m cascade edit`: an image of a prompt, changed by changing the prompt."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._common import (
    Bars,
    add_networks,
    add_stages,
    add_tile,
    fraction,
    output_paths,
    parts_of,
    recipe_of,
    save,
    say_tiny_is_used,
    settings_of,
)
from ._words import factor_of

if TYPE_CHECKING:
    from ..editing import EditStrength

DESCRIPTION = """Change an image by changing its prompt (prompt-to-prompt): the image of --prompt and --seed is made
again with --to instead, and keeps its composition. Exchange, add or leave out words."""
EXAMPLES = """examples:
  python -m cascade edit --prompt "a red circle, left" --to "a green circle, left" --seed 7 -o green.png
  python -m cascade edit --prompt "a red circle on a white background" --to "a red star on a white background" \
    --comparison
  python -m cascade edit --prompt "an owl in a forest" --to "an owl in a snowy forest" --weight snowy=2 \
    --models ComfyUI/models"""
STRENGTHS = {
    "text": "until this part of the run, 0 to 1, the image looks at the words as the first image did: higher keeps "
    "more",
    "image": "until this part of the run it looks at itself as the first image did: higher keeps shapes, lower lets "
    "them change",
    "pooled": "until this part of the run the summary of the prompt is the first prompt's: higher keeps more",
    "blend": "what is seen less than this share of the changed words stays as it was, 0 to 1; 0: all may change",
}


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "edit",
        help="change an image by changing its prompt",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompt", required=True, help="what the image shows")
    parser.add_argument("--to", required=True, metavar="PROMPT", help="what it should show instead")
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what it should not show; default: empty")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the image; default 0")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the next free cascade-N.png")
    parser.add_argument("--comparison", action="store_true", help="write the image before and after side by side")
    group = parser.add_argument_group("how much is kept")
    for name, text in STRENGTHS.items():
        group.add_argument(f"--{name}", type=fraction, metavar="F", help=text)
    group.add_argument(
        "--weight",
        type=factor_of,
        action="append",
        default=[],
        metavar="WORD=F",
        help="a factor of the attention to a word of --to: above 1 more of it, below 1 less; may be repeated",
    )
    add_stages(parser)
    add_tile(parser)
    add_networks(parser)


def run(args: argparse.Namespace) -> int:
    """Make both images and write the changed one."""
    [path] = output_paths(args.output, 1)
    settings = settings_of(args)
    if not args.models:
        say_tiny_is_used("" if args.lora else args.to)
    import torch

    from ..images import to_pillow
    from ..pipelines import edit

    strength = _strength(args)
    with Bars() as bars:
        result = edit(
            parts_of(args),
            args.prompt,
            args.to,
            seeds=[args.seed],
            negative=args.negative,
            strength=strength,
            weights=dict(args.weight),
            settings=settings,
            on_progress=bars,
        )
    images = [result.source.images[0], result.target.images[0]]
    about = {"prompt": args.prompt, "to": args.to, "negative": args.negative, "seed": args.seed}
    kept = {name: getattr(strength, name) for name in STRENGTHS}
    weights = {"weight": dict(args.weight)} if args.weight else {}
    recipe = recipe_of(args, settings, **about, **kept, **weights)
    save(to_pillow(torch.cat(images, dim=-1) if args.comparison else images[1]), path, recipe)
    print(path)
    return 0


def _strength(args: argparse.Namespace) -> EditStrength:
    from ..editing import EditStrength

    given = {name: getattr(args, name) for name in STRENGTHS}
    return replace(EditStrength(), **{name: value for name, value in given.items() if value is not None})
