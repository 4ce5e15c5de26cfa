"""`prepare`: what a training computes from its images, before it."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "prepare",
        help="compute what a training reads: latents and embeddings of its images, in shards",
        description="Compute the latents and embeddings of a training's images into its cache, and check what is "
        "there. Ctrl-C stops; the same command continues behind the last shard. On several cards: torchrun "
        "--nproc-per-node N -m cascade prepare FILE.",
    )
    parser.add_argument("config", help="the training's file of settings, ours or one of the released training")
    parser.add_argument("--folder", type=Path, default=Path(), help="relative paths of the settings start here")
    parser.add_argument(
        "--set",
        dest="changes",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another value for a key of the file",
    )


def run(args: argparse.Namespace) -> int:
    from .. import training
    from ..tiny import train as _  # noqa: F401  registers its images, and what tiny:KIND means
    from ..training.preparation import prepare
    from . import _train_check as check
    from .train import progress_bar, read_changes

    first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    data = training.read_mapping(Path(args.config), read_changes(args.changes))
    config = check.parsed(data, args.config, args.folder, stream=False)
    for line in prepare(config, progress=progress_bar):
        if first:
            print(line)
    return 0
