"""`python -m cascade edit`: an image, of a file or of a prompt, changed by changing the prompt."""

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
    read_image,
    recipe_of,
    save,
    say_tiny_is_used,
    settings_of,
)
from ._edit_image import check_given, edited_image
from ._instruct import add_instruction, check_instruction, instructed
from ._words import factor_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..editing import EditStrength
    from ..pipelines import Settings

DESCRIPTION = """Change an image by changing its prompt (prompt-to-prompt): the image of --prompt and --seed is made
again with --to instead, and keeps its composition. Exchange, add or leave out words. With FILE, an image of your own
that --prompt describes: Stage C first finds the noise from which it makes exactly that image (the inversion). With FILE
and --instruction neither prompt is needed: say what to change, and an instruct network, trained for this, does it."""
EXAMPLES = """examples:
  python -m cascade edit --prompt "a red circle, left" --to "a green circle, left" --seed 7 -o green.png
  python -m cascade edit --prompt "a red circle on a white background" --to "a red star on a white background" \
    --comparison
  python -m cascade edit circle.png --prompt "a red circle" --to "a green circle" -o green.png
  python -m cascade edit circle.png --instruction "make it green" -o green.png
  python -m cascade edit owl.jpg --prompt "an owl in a forest" --to "an eagle in a forest" \
    --inversion owl.safetensors --models ComfyUI/models
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
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="an image to change; default: a generated one"
    )
    parser.add_argument("--prompt", help="what the image shows")
    parser.add_argument("--to", metavar="PROMPT", help="what it should show instead")
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
    group = parser.add_argument_group("with FILE")
    group.add_argument(
        "--skip",
        type=int,
        default=0,
        metavar="N",
        help="steps of Stage C at the start that are left out: more keeps more of the image, and is faster; default 0",
    )
    group.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="white may change, black stays as it is; default: what --blend says, else all may change",
    )
    group.add_argument(
        "--inversion",
        type=Path,
        metavar="FILE",
        help="where the inversion is kept (.safetensors): made if there is none, used if there is, which is faster",
    )
    add_instruction(parser)
    add_stages(parser)
    add_tile(parser)
    add_networks(parser)


def run(args: argparse.Namespace) -> int:
    """Make the changed image and write it; 0."""
    from ..pipelines.instruct import CFG

    [path] = output_paths(args.output, 1)
    check_instruction(args)
    given = None if args.file is None else read_image(args.file)
    check_given(args)
    if args.instruction is not None:
        args.cfg = CFG if args.cfg is None else args.cfg
    settings = settings_of(args, given)
    if not args.models:
        say_tiny_is_used("" if args.lora or args.instruction is not None else args.to)
    if given is not None and args.instruction is not None:
        images, recipe = instructed(args, given, settings)
    else:
        images, recipe = _by_prompts(args, given, settings)
    import torch

    from ..images import to_pillow

    save(to_pillow(torch.cat(images, dim=-1) if args.comparison else images[1]), path, recipe)
    print(path)
    return 0


def _by_prompts(
    args: argparse.Namespace, given: Tensor | None, settings: Settings
) -> tuple[list[Tensor], dict[str, Any]]:
    """The image before and after, and the recipe."""
    strength = _strength(args)
    if given is None:
        images, more = _generated(args, strength, settings), {}
    else:
        images, more = edited_image(args, given, strength, settings)
    about = {"prompt": args.prompt, "to": args.to, "negative": args.negative, "seed": args.seed}
    kept = {name: getattr(strength, name) for name in STRENGTHS}
    weights = {"weight": dict(args.weight)} if args.weight else {}
    return images, recipe_of(args, settings, **about, **kept, **weights, **more)


def _generated(args: argparse.Namespace, strength: EditStrength, settings: Settings) -> list[Tensor]:
    """The image of the prompt, and the same changed."""
    from ..pipelines import edit

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
    return [result.source.images[0], result.target.images[0]]


def _strength(args: argparse.Namespace) -> EditStrength:
    from ..editing import EditStrength

    given = {name: getattr(args, name) for name in STRENGTHS}
    return replace(EditStrength(), **{name: value for name, value in given.items() if value is not None})
