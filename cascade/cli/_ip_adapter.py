"""The options of `generate` for images as prompts, by an IP-Adapter."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CascadeError
from ._common import fraction, read_image

if TYPE_CHECKING:
    from ..pipelines import IPAdapterImages, Parts

OWN = ("ip_adapter", "ip_blocks", "ip_start", "ip_end", "ip_mask")


class Given(NamedTuple):
    """One --ip-image."""

    file: Path
    weight: float

    @property
    def name(self) -> str:
        """For a recipe: without folders."""
        return f"{self.file.name}={self.weight:g}"


def add_ip_adapter(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group("IP-Adapter")
    group.add_argument(
        "--ip-image",
        type=_given,
        action="append",
        default=[],
        metavar="FILE[=WEIGHT]",
        help="an image that the new images follow beside the prompt, and how strongly, default 1; may be repeated",
    )
    group.add_argument(
        "--ip-adapter",
        type=Path,
        metavar="FILE",
        help="an IP-Adapter trained for this Stage C; default: the one of the tiny cascade",
    )
    group.add_argument(
        "--ip-blocks", metavar="BLOCKS", help="the blocks of Stage C in which the images act, as of --like-blocks"
    )
    for name, where in (("start", "begin"), ("end", "stop")):
        group.add_argument(
            f"--ip-{name}",
            type=fraction,
            metavar="F",
            help=f"where in sampling the images {where} to act, 0 (start) to 1 (end); default {int(name == 'end')}",
        )
    group.add_argument("--ip-mask", type=Path, metavar="FILE", help="an image that is white where the images count")


def _given(text: str) -> Given:
    file, _, number = text.rpartition("=")
    if not file:
        return Given(Path(text), 1.0)
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise argparse.ArgumentTypeError(f"{text} is not FILE or FILE=WEIGHT with a number, such as photo.png=0.8")
    return Given(Path(file), weight)


def ip_needs(args: argparse.Namespace) -> list[str]:
    """The networks that they need. Raises CascadeError for options that do not belong together."""
    if not args.ip_image:
        if given := [name for name in OWN if getattr(args, name) is not None]:
            raise CascadeError(f"--{given[0].replace('_', '-')} needs --ip-image, an image to follow.")
        return []
    if args.models and args.ip_adapter is None:
        raise CascadeError("--ip-image needs --ip-adapter, an IP-Adapter that was trained for this Stage C.")
    return ["image_encoder"]


def ip_images(args: argparse.Namespace, parts: Parts) -> list[IPAdapterImages]:
    """The images that were asked for, with the adapter where `parts` are."""
    if not args.ip_image:
        return []
    from .. import tiny
    from ..checkpoints import load_model
    from ..editing import BlockWeights
    from ..pipelines import IPAdapterImages

    path = args.ip_adapter or tiny.path(tiny.IP_ADAPTER)
    adapter = load_model(path, part="ip_adapter", dtype=parts.dtype, device=parts.device, check_finite=True)
    mask = None if args.ip_mask is None else read_image(args.ip_mask)[:, :1]
    options = {
        "start_percent": args.ip_start or 0.0,
        "end_percent": 1.0 if args.ip_end is None else args.ip_end,
        "blocks": BlockWeights.of(args.ip_blocks or "all"),
        "mask": mask,
    }
    return [
        IPAdapterImages(adapter=adapter, images=read_image(each.file), weight=each.weight, **options)
        for each in args.ip_image
    ]


def ip_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """What the recipe says of them; nothing without any."""
    if not args.ip_image:
        return {}
    given = {name: getattr(args, name) for name in OWN if getattr(args, name) is not None}
    about = {name: value.name if isinstance(value, Path) else value for name, value in given.items()}
    return {"ip_image": [each.name for each in args.ip_image], **about}
