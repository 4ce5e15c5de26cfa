"""`train`: one training from its file, a LoRA of a folder of images, or the tiny cascade from scratch."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import _train_check as _check
from . import _train_lora as _lora
from ._common import STOPPED


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a LoRA of a folder of images, a network from a file of settings, or the tiny cascade from scratch",
        description="Train a LoRA of a folder of images (`lora FOLDER`), one network from a file of settings (YAML or "
        "JSON), or the whole tiny cascade (`tiny`). Ctrl-C saves and stops; the same command continues. On several "
        "cards: torchrun --nproc-per-node N -m cascade train FILE.",
    )
    parser.add_argument("config", help="`lora`, a settings file (ours, or one of the released training), or `tiny`")
    parser.add_argument(
        "images",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="lora: the images, each with a caption in a .txt file of its name, else its name is the caption",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="relative paths of the settings start here (default: this folder; tiny: runs/tiny); lora: where the run "
        "keeps its files (default: runs/NAME)",
    )
    parser.add_argument(
        "--set",
        dest="changes",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another value for a key of the file, as in --set steps=2000 or --set stage_b.effnet_noise=0.1",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="a settings file: only say what its keys mean, what is missing here, and the memory and disk it needs",
    )
    _lora.add_options(parser)
    parser.add_argument(
        "--part",
        help="tiny: only this part of the recipe, such as stage_c; a name that it does not have lists them",
    )
    parser.add_argument("--smoke", action="store_true", help="tiny: every step of the recipe, but tiny and short")
    parser.add_argument("--install", type=Path, help="tiny: at the end, copy the weights to this folder")


def run(args: argparse.Namespace) -> int:
    from .. import training
    from ..errors import InvalidConfig
    from ..tiny import train as recipe

    first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    changes = read_changes(args.changes)
    if args.config in ("lora", "tiny") and training.launched():
        raise InvalidConfig(f"train {args.config}: torchrun is for files of settings; run this one without it")
    if args.check and args.config in ("lora", "tiny"):
        raise InvalidConfig(f"--check is for files of settings, not for train {args.config}")
    if args.config == "lora":
        return _lora.run(args, changes, progress_bar)
    _lora.refuse_options(args)
    if args.config == "tiny":
        parts = recipe.PARTS if args.part is None else (args.part,)
        folder = args.folder or Path("runs/tiny")
        run_recipe = recipe.train_tiny(
            folder, parts=parts, smoke=args.smoke, changes=changes, install=args.install, progress=progress_bar
        )
        return 0 if run_recipe else STOPPED
    data = training.read_mapping(Path(args.config), changes)
    if args.check:
        return _check.run(data, args.config, args.folder or Path()) if first else 0
    config = _check.parsed(data, args.config, args.folder or Path())
    outcome = training.train(config, progress=progress_bar)
    if first:
        print(f"{config.output}: {'complete' if outcome.complete else 'stopped'} at step {outcome.step}")
    return 0 if outcome.complete else STOPPED


def read_changes(given: Sequence[str]) -> dict[str, Any]:
    """`--set` KEY=VALUE, several. Raises InvalidConfig."""
    from ..errors import InvalidConfig
    from ..training.config import read_value

    changes: dict[str, Any] = {}
    for change in given:
        key, equals, value = change.partition("=")
        if not equals:
            raise InvalidConfig(f"--set {change}: expected KEY=VALUE")
        changes[key] = read_value(value, f"--set {key}")
    return changes


def progress_bar(title: str, unit: str) -> Callable[..., None]:
    """A progress bar as a callback (done, total, metrics); without a terminal, a line a minute."""
    from tqdm import tqdm

    bar: tqdm[Any] | None = None

    def update(done: int, total: int, metrics: dict[str, float] | None = None) -> None:
        nonlocal bar
        if bar is None:  # only now: what is cached already, or refused, has no progress
            interval = 0.5 if sys.stderr.isatty() else 60
            bar = tqdm(desc=title, unit=unit, total=total, initial=done - 1, dynamic_ncols=True, mininterval=interval)
        shown = {
            name: f"{metrics[name]:.4g}" for name in ("loss", "psnr", "mse", "memory_gb") if metrics and name in metrics
        }
        bar.set_postfix(shown, refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return update
