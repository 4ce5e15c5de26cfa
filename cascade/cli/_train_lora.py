"""`train lora FOLDER`: a LoRA of a folder of images, without a settings file."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError
from ._common import STOPPED, count, parts_of, say

if TYPE_CHECKING:
    from ..training import ProgressBars

CLASS_IMAGES_TINY, CLASS_IMAGES, AT_ONCE_TINY = 200, 100, 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    group = parser.add_argument_group("lora")
    group.add_argument(
        "--token", metavar="TEXT", help='how prompts write what is learned, such as "[moon]"; none: a style'
    )
    group.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the LoRA; default: NAME.safetensors, of the token"
    )
    group.add_argument(
        "--initializer", metavar="TEXT", help="something similar that the model knows, such as 'a barn owl'"
    )
    group.add_argument("--steps", type=count, metavar="N", help="default: 1200 for the tiny cascade, else 1000")
    group.add_argument(
        "--class-images",
        type=int,
        metavar="N",
        help="images without the token that the model generates first, so that other prompts stay as they are; 0: "
        f"none; default: {CLASS_IMAGES_TINY} for the tiny cascade, else {CLASS_IMAGES}",
    )
    group.add_argument(
        "--models", type=Path, action="append", metavar="DIR", help="folder with networks; default: the tiny cascade"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps")
    parser.set_defaults(lora=[], dtype=None)


def refuse_options(args: argparse.Namespace) -> None:
    """Raises CascadeError for what only `train lora` takes."""
    if args.images is not None:
        raise CascadeError(f"{args.images}: only `train lora` takes a folder of images")
    options = ("token", "output", "initializer", "steps", "class_images", "models", "device")
    if given := [f"--{name.replace('_', '-')}" for name in options if getattr(args, name) is not None]:
        raise CascadeError(f"{', '.join(given)}: only for `train lora`; elsewhere use --set KEY=VALUE")


def run(args: argparse.Namespace, changes: Mapping[str, Any], progress: ProgressBars) -> int:
    """Train the LoRA and copy it to its place; 0, or STOPPED."""
    output = _checked(args)
    parts = parts_of(args, ("text_encoder", "stage_c", "effnet", "stage_b", "stage_a"))
    if not args.models:
        say("Using the tiny cascade that ships with this package. For the released networks give --models DIR.")
    from ..files import write_atomically
    from ..training.plain import SETTINGS_FILE, PlainLora, train_plain

    folder = args.folder or Path("runs") / output.stem
    wanted = PlainLora(
        images=args.images,
        folder=folder,
        name=output.stem,
        token=args.token,
        initializer=args.initializer,
        steps=args.steps,
        changes=changes,
        class_prompts=partial(_class_prompts, args),
        at_once=1 if args.models else AT_ONCE_TINY,
    )
    outcome, captions = train_plain(wanted, parts, progress=progress)
    made = folder / output.name
    if not outcome.complete:
        say(f"Stopped at step {outcome.step}; the same command continues. So far: {made}")
        return STOPPED
    write_atomically(output, lambda path: shutil.copyfile(made, path))
    say(f"Samples: {folder / 'samples'}; loss: {folder / 'loss.png'}; settings: {folder / SETTINGS_FILE}")
    models = "".join(f" --models {path}" for path in args.models or ())
    say(f'Try it: python -m cascade generate "{captions[0]}" --lora {output}{models}')
    print(output)
    return 0


def _checked(args: argparse.Namespace) -> Path:
    """Where the LoRA goes. Raises CascadeError for what could not work, before the work is done."""
    from ..adapters import check_token
    from ..conditioning import tokenizer

    if args.images is None:
        raise CascadeError("train lora needs a folder of images: python -m cascade train lora FOLDER")
    if args.token is not None:
        check_token(args.token, tokenizer())
    name = (args.token or "").strip("[]<>{}") or args.images.absolute().name
    output: Path = args.output or Path(f"{name}.safetensors")
    if output.suffix != ".safetensors":
        raise CascadeError(f"{output}: a LoRA is a .safetensors file")
    if not output.absolute().parent.is_dir():
        raise CascadeError(f"{output}: there is no folder {output.absolute().parent}.")
    return output


def _class_prompts(args: argparse.Namespace, captions: Sequence[str]) -> list[str]:
    """Prompts without the token: for the tiny cascade what it knows, else those of the images."""
    number = args.class_images
    if number is None:
        number = 0 if args.token is None else CLASS_IMAGES if args.models else CLASS_IMAGES_TINY
    if args.models:
        from ..training.plain import without_token

        plain = [without_token(caption, args.token or "", args.initializer or "") for caption in captions]
        return [plain[i % len(plain)] for i in range(number)]
    from ..tiny.new_shapes import class_prompts

    return class_prompts(number)
