"""The options of `generate` for the look and the content of reference images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError
from ._common import count, fraction, read_image

if TYPE_CHECKING:
    from ..pipelines import Parts, StyleReference


def add_style(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group("style")
    group.add_argument("--style", type=Path, metavar="FILE", help="an image whose look the new images get")
    group.add_argument(
        "--style-weight",
        type=fraction,
        default=1.0,
        metavar="F",
        help="how strongly, from 0 (not at all) to 1; default %(default)s",
    )
    group.add_argument(
        "--content", type=Path, metavar="FILE", help="an image whose content they get; with --style: in its look"
    )
    group.add_argument(
        "--content-mask",
        type=Path,
        metavar="FILE",
        help="mask over --content: white where it counts, the rest is black",
    )
    group.add_argument(
        "--style-steps",
        type=count,
        metavar="N",
        help="also correct the prediction of every step so many times until it looks like --style: closer and slower; "
        "published: 3; default: not at all",
    )
    group.add_argument(
        "--style-descriptor",
        type=Path,
        metavar="FILE",
        help="with --style-steps: CSD's checkpoint.pth, which tells style from content; default: the image encoder",
    )
    group.add_argument(
        "--style-aligned",
        type=fraction,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="F",
        help="with --number: all images get the look of the first, from 0 (not at all) to 1; without a number 1",
    )


def style_needs(args: argparse.Namespace) -> list[str]:
    """The networks that they need. Raises CascadeError for options that need --style."""
    if args.style_aligned and args.number == 1:
        raise CascadeError("--style-aligned needs --number 2 or more: the others get the look of the first.")
    if args.content_mask is not None and args.content is None:
        raise CascadeError("--content-mask needs --content, the image that it belongs to.")
    if args.style_descriptor is not None and args.style_steps is None:
        raise CascadeError("--style-descriptor needs --style-steps: it looks at the prediction of every step.")
    if args.style is None and args.style_steps is not None:
        raise CascadeError("--style-steps needs --style, the image whose look the new images get.")
    if args.style is None and args.content is None:
        return []
    return ["image_encoder", *(["effnet", "previewer"] if args.style_steps else [])]


def style_of(args: argparse.Namespace) -> StyleReference | None:
    """The references that were asked for."""
    if args.style is None and args.content is None:
        return None
    from ..editing import ControlSteps
    from ..pipelines import StyleReference

    return StyleReference(
        image=None if args.style is None else read_image(args.style),
        content=None if args.content is None else read_image(args.content),
        content_mask=None if args.content_mask is None else read_image(args.content_mask)[:, :1],
        weight=args.style_weight,
        control=None if args.style_steps is None else ControlSteps(steps=args.style_steps),
    )


def with_descriptor(args: argparse.Namespace, parts: Parts) -> Parts:
    """The networks with the descriptor that was asked for, and without one that was not."""
    from ..pipelines.style import DESCRIPTOR

    sources = {kind: source for kind, source in parts.sources.items() if kind != DESCRIPTOR}
    if args.style_descriptor is not None:
        sources[DESCRIPTOR] = args.style_descriptor
    return replace(parts, sources=sources)


def style_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """What the recipe says of them; nothing without any."""
    shared: dict[str, Any] = {"style_aligned": args.style_aligned} if args.style_aligned else {}
    if args.style is None and args.content is None:
        return shared
    options = ("style", "content", "content_mask", "style_descriptor")
    files = {name: path.name for name in options if (path := getattr(args, name)) is not None}
    about = {**shared, **files, "style_weight": args.style_weight}
    return about | ({} if args.style_steps is None else {"style_steps": args.style_steps})
