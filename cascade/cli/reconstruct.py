"""`python -m cascade reconstruct`: an image through the small latent and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._common import (
    Bars,
    add_networks,
    add_stage_b,
    add_tile,
    output_paths,
    parts_of,
    read_image,
    save,
    stage_of,
    stage_recipe,
    tiles_of,
)


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "reconstruct",
        help="an image through the small latent and back",
        description="Encode an image to the small latent that Stage C would make, generate it again with Stage B and "
        "Stage A, and measure the difference. The image keeps its size.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="an image file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the next free cascade-N.png")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise of Stage B; default 0")
    parser.add_argument(
        "--compression",
        type=_compression,
        metavar="PIXELS",
        help="pixels of the image's side for each position of the latent, 8 to 256; lower comes closer to the image; "
        "trained: 32 to 64; default 42.67",
    )
    parser.add_argument(
        "--comparison", action="store_true", help="write the image and its reconstruction side by side in one file"
    )
    parser.add_argument("--beside", dest="comparison", action="store_true", help=argparse.SUPPRESS)
    add_stage_b(parser)
    add_tile(parser)
    add_networks(parser)


def run(args: argparse.Namespace) -> int:
    """Write the reconstruction, and print how close it is to the image; 0."""
    [path] = output_paths(args.output, 1)
    image = read_image(args.image)
    from ..images import psnr, side_by_side, ssim, to_pillow
    from ..images.resize import COMPRESSION
    from ..pipelines import STAGE_B_SETTINGS, reconstruct

    compression = COMPRESSION if args.compression is None else args.compression
    settings = stage_of(args, STAGE_B_SETTINGS, "_b")
    parts = parts_of(args, ("text_encoder", "effnet", "stage_b", "stage_a"))
    with Bars() as bars:
        result = reconstruct(
            parts,
            image,
            seeds=[args.seed],
            settings=settings,
            compression=compression,
            tiles=tiles_of(args),
            on_progress=bars,
        )
    again = result.images
    about = {"reconstructed": args.image.name, "seed": args.seed, "compression": compression}
    about |= {"stage_b": stage_recipe(args, settings, "_b")}
    save(to_pillow((side_by_side(image, again) if args.comparison else again)[0]), path, about)
    latent = " x ".join(map(str, result.stage_c.shape[1:]))
    print(f"{path}: latent {latent}, PSNR {psnr(image, again):.2f} dB, SSIM {ssim(image[0], again[0]):.3f}")
    return 0


def _compression(text: str) -> float:
    number = float(text)
    if not 8 <= number <= 256:
        raise argparse.ArgumentTypeError(f"{text} is not 8 to 256")
    return number
