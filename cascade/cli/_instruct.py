"""`edit FILE --instruction`: an image of a file changed as an instruction says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError
from ._common import NEEDED, Bars, finite, parts_of, read_image, recipe_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipelines import Settings

FOR_PROMPTS = ("prompt", "to", "text", "image", "pooled", "blend", "weight", "skip", "inversion")
"""Options that an instruction makes useless."""
OWN = ("instruct_network", "image_cfg", "instruct_strength")


def add_instruction(parser: argparse.ArgumentParser) -> None:
    """The options of `instructed`."""
    group = parser.add_argument_group("with FILE and an instruction, in place of --prompt and --to")
    group.add_argument("--instruction", metavar="TEXT", help='what to change, as in "make it green"')
    group.add_argument(
        "--instruct-network",
        type=Path,
        metavar="FILE",
        help="an instruct network trained for this Stage C; default: the one of the tiny cascade",
    )
    group.add_argument(
        "--image-cfg",
        type=finite,
        metavar="CFG",
        help="higher keeps more of the image, as --cfg follows the instruction more; default 1.5",
    )
    group.add_argument(
        "--instruct-strength", type=finite, metavar="F", help="strength of the instruct network; default 1"
    )


def check_instruction(args: argparse.Namespace) -> None:
    """Raises CascadeError for options that do not belong together, and InvalidSettings for an empty instruction."""
    if args.instruction is None:
        if given := [name for name in OWN if getattr(args, name) is not None]:
            raise CascadeError(f"{_option(given[0])} needs --instruction.")
        if args.prompt is None or args.to is None:
            raise CascadeError("Give --prompt and --to, or FILE and --instruction.")
        return
    from ..pipelines.instruct import check_instruction as check_text

    check_text(args.instruction)
    if args.file is None:
        raise CascadeError("--instruction needs FILE, an image to change.")
    if given := [name for name in FOR_PROMPTS if getattr(args, name)]:
        raise CascadeError(f"{_option(given[0])} does not go with --instruction, which needs no prompts: leave it out.")
    if args.models and args.instruct_network is None:
        raise CascadeError("--instruction needs --instruct-network, a network that was trained for this Stage C.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def instructed(args: argparse.Namespace, image: Tensor, settings: Settings) -> tuple[list[Tensor], dict[str, Any]]:
    """The image [1, 3, H, W] at its new size and the same changed, and the recipe."""
    from .. import tiny
    from ..adapters import read_instruct
    from ..images import as_mask, fit
    from ..pipelines import follow
    from ..pipelines.instruct import IMAGE_CFG

    parts = parts_of(args, [*NEEDED, "effnet"])
    network = read_instruct(args.instruct_network or tiny.path(tiny.INSTRUCT), dtype=parts.dtype)
    image_cfg = IMAGE_CFG if args.image_cfg is None else args.image_cfg
    strength = 1.0 if args.instruct_strength is None else args.instruct_strength
    with Bars() as bars:
        result = follow(
            parts,
            image,
            args.instruction,
            network,
            seeds=[args.seed],
            negative=args.negative,
            image_cfg=image_cfg,
            strength=strength,
            mask=None if args.mask is None else as_mask(read_image(args.mask)[:, :1]),
            settings=settings,
            on_progress=bars,
        )
    about = {"file": args.file.name, "instruction": args.instruction, "negative": args.negative, "seed": args.seed}
    more = {"mask": args.mask.name} if args.mask else {}
    recipe = recipe_of(args, settings, **about, image_cfg=image_cfg, instruct_strength=strength, **more)
    return [fit(image, *settings.final)[0], result.images[0]], recipe
