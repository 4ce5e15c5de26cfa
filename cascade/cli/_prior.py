"""`generate --prior`: prompts through an image embedding."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError

if TYPE_CHECKING:
    from ..pipelines import Parts, PriorPrompt

TINY = "tiny"


def add_prior(group: Any) -> None:
    """Add the option to a group of options."""
    group.add_argument(
        "--prior",
        nargs="?",
        const=TINY,
        metavar="FILE",
        help="turn the prompt into the embedding of an image first, with this prior (default: the tiny cascade's), and "
        "make the image from the embedding alone, as --like does; both together mix",
    )


def prior_of(args: argparse.Namespace, parts: Parts) -> PriorPrompt | None:
    """The prior that was asked for, where `parts` are. Raises CascadeError, and what loading a file raises."""
    if args.prior is None:
        return None
    from .. import tiny
    from ..checkpoints import load_model
    from ..pipelines import PriorPrompt

    if args.prior == TINY and args.models:
        raise CascadeError("--prior without a file is the tiny cascade's; with --models give --prior FILE.")
    path = tiny.path(tiny.PRIOR) if args.prior == TINY else Path(args.prior)
    return PriorPrompt(net=load_model(path, part="prior", dtype=parts.dtype, device=parts.device))


def prior_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """What a recipe says of it; nothing without one."""
    return {} if args.prior is None else {"prior": Path(args.prior).name}
