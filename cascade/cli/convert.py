"""`python -m cascade convert SOURCE... TARGET`: another layout or another type."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

LAYOUTS = ("cascade", "comfyui", "diffusers")
QUANTIZATIONS = ("fp8_scaled", "int8")
DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="write a checkpoint in another layout or type",
        description="Write a checkpoint in another layout or type, one tensor at a time and atomically. Sources may be "
        "single files, ComfyUI checkpoints, diffusers folders, .pt and .ckpt.",
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a file or folder; comfyui takes several")
    parser.add_argument("target", metavar="TARGET", help="the file to write; for diffusers a folder")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="cascade",
        help="cascade: a single file as released, with its config as metadata (the default); comfyui: a checkpoint for "
        "ComfyUI's checkpoint loader; diffusers: a folder with config.json",
    )
    parser.add_argument(
        "--part", metavar="KIND", help="the network to use from a file that contains several, such as stage_c"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="type of the tensors; default: unchanged")
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="Stage C and Stage B: most matrices take one byte a number, with a factor for each, as ComfyUI's fast "
        "kernels read them; --dtype is that of the others",
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from ..checkpoints import KINDS, convert
    from ..errors import CascadeError
    from ..files import check_name
    from ._common import counter

    if args.part is not None and args.part not in KINDS:
        raise CascadeError(f"--part must be one of {', '.join(KINDS)}, not {args.part}")
    check_name(Path(args.target))
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    with counter(args.target, " tensors") as on_tensor:
        try:
            convert(
                args.sources,
                args.target,
                layout=args.layout,
                part=args.part,
                dtype=dtype,
                quantize=args.quantize,
                on_tensor=on_tensor,
            )
        except ValueError as error:
            raise CascadeError(str(error)) from error
    return 0
