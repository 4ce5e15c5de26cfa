"""What the commands that make images share: their options, their networks, their files, their progress."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError, InvalidImage, MissingPart
from ..files import check_name, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapters import Applied
    from ..diffusion import Cache
    from ..pipelines import Parts, SamplingSettings, Settings, Tiles

RELEASED_FILES = {
    "text_encoder": "text_encoder/model.safetensors, or in stable_cascade_stage_c.safetensors; ComfyUI: text_encoders",
    "stage_c": "stage_c.safetensors or stage_c_lite.safetensors; ComfyUI: diffusion_models",
    "stage_b": "stage_b.safetensors or stage_b_lite.safetensors; ComfyUI: diffusion_models",
    "stage_a": "stage_a.safetensors, or in stable_cascade_stage_b.safetensors; ComfyUI: vae",
    "effnet": "effnet_encoder.safetensors, or in stable_cascade_stage_c.safetensors; ComfyUI: vae",
    "image_encoder": "image_encoder/model.safetensors, or in stable_cascade_stage_c.safetensors; ComfyUI: clip_vision",
    "previewer": "previewer.safetensors, or in stable_cascade_stage_c.safetensors; ComfyUI: vae",
}
"""A part, the released file that has it, and ComfyUI's folder for it."""
NEEDED = ("text_encoder", "stage_c", "stage_b", "stage_a")
"""What a prompt needs."""
SMALLEST_TILE = 256
STOPPED = 130
"""The exit status of a training that was stopped, saved, and can go on."""
TINY_SIDE = 256
"""Sides of the tiny cascade's images."""
SAMPLING = ("steps", "sampler_name", "shift")
GUIDANCE = ("cfg", "cfg_rescale", "cfg_end", "start_percent", "end_percent")
CACHE = ("inner_every", "cache_threshold", "cfg_every")
"""Options of a stage, with the names that they have in `SamplingSettings`, in its `Guidance` and in its `Cache`."""


def add_networks(parser: argparse.ArgumentParser) -> None:
    """The options of `parts_of`."""
    group = parser.add_argument_group("networks")
    group.add_argument(
        "--models",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder with the released networks, searched with its subfolders, or one file; may be repeated; without "
        "it, the tiny cascade is used",
    )
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="LoRA file of any trainer (tiny: the included one), and how strongly it acts, default 1; its tokens can "
        "be used in the prompt; may be repeated",
    )
    group.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps; default cuda where there is one, cpu for the tiny cascade"
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the weights; default bfloat16 on cuda, else float32",
    )


def add_stages(parser: argparse.ArgumentParser) -> None:
    """The size, and how each stage is sampled: the options of `settings_of`."""
    for side in ("width", "height"):
        parser.add_argument(
            f"--{side}", type=int, metavar="PIXELS", help=f"{side} of the image; default 1024, tiny cascade 256"
        )
    add_preset(parser)
    group = _add_stage(parser, "C", "", steps=20, cfg=4.0, shift=2.0)
    group.add_argument(
        "--cfg-rescale",
        type=fraction,
        metavar="F",
        help="reduces the contrast that a high cfg adds, 0 (not at all) to 1 (fully); default 0.7",
    )
    group.add_argument(
        "--cfg-end", type=float, metavar="CFG", help="cfg at the end of sampling; it changes evenly; default: as --cfg"
    )
    group.add_argument(
        "--start-percent",
        type=fraction,
        metavar="F",
        help="where in sampling cfg begins to act, 0 (start) to 1 (end); before it, cfg is 1; default 0",
    )
    group.add_argument(
        "--end-percent",
        type=fraction,
        metavar="F",
        help="where in sampling cfg stops acting, 0 (start) to 1 (end); after it, cfg is 1; default 1",
    )
    add_stage_b(parser)


def add_preset(parser: argparse.ArgumentParser) -> None:
    """The option that sets both stages at once."""
    parser.add_argument(
        "--preset",
        choices=("released", "fast", "turbo"),
        default="released",
        help="steps, cfg, sampler and shift of both stages, where they are not given themselves: fast is nearly as "
        "good in less time; turbo needs LoRAs made for a few steps, which the tiny cascade has; default %(default)s",
    )


def add_stage_b(parser: argparse.ArgumentParser) -> None:
    """The options of `stage_of` for Stage B."""
    _add_stage(parser, "B", "-b", steps=10, cfg=1.1, shift=1.0)


def _add_stage(
    parser: argparse.ArgumentParser, stage: str, suffix: str, *, steps: int, cfg: float, shift: float
) -> Any:
    """The numbers are for the help alone: an option that is not given leaves the library's default as it is."""
    group = parser.add_argument_group(f"Stage {stage}")
    end = suffix.replace("-", "_")
    group.add_argument(f"--steps{suffix}", type=count, metavar="N", help=f"sampling steps; default {steps}")
    group.add_argument(
        f"--cfg{suffix}",
        type=float,
        metavar="CFG",
        help="guidance scale: higher follows the prompt more closely; 1 ignores the negative prompt and is faster; "
        f"default {cfg:g}",
    )
    group.add_argument(f"--guidance{suffix}", dest=f"cfg{end}", type=float, help=argparse.SUPPRESS)
    group.add_argument(
        f"--sampler{suffix}",
        dest=f"sampler_name{end}",
        type=sampler_name,
        metavar="NAME",
        help="ddpm, ddim (adds no noise between steps), dpmpp_2m, res_multistep or er_sde (need fewer steps), or lcm "
        "(for models made for few steps); default ddpm",
    )
    group.add_argument(
        f"--shift{suffix}",
        type=positive,
        metavar="S",
        help=f"higher spends more steps on high noise, which larger images need; above 0; default {shift:g}",
    )
    group.add_argument(
        f"--inner-every{suffix}",
        type=count,
        metavar="N",
        help="faster and less exact: the inner levels, most of the work, run at every Nth step; default 1",
    )
    group.add_argument(
        f"--cache-threshold{suffix}",
        type=positive,
        metavar="F",
        help="between those steps they also run where their input has changed by more than this share, such as "
        "0.4 with ddpm and 0.1 with ddim",
    )
    group.add_argument(
        f"--cfg-every{suffix}",
        type=count,
        metavar="N",
        help="faster and less exact: the negative prompt is computed at every Nth step; default 1",
    )
    return group


def add_tile(parser: Any) -> None:
    """The option of `tiles_of`."""
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="Stage B and Stage A work in tiles of this side, to save memory with large images; at least "
        f"{SMALLEST_TILE}, such as 1024; default: no tiles",
    )


def tiles_of(args: argparse.Namespace) -> Tiles | None:
    """The tiles of `add_tile`, overlapping by a quarter; None for none. Raises CascadeError for too small ones."""
    from ..pipelines import Tiles

    if args.tile is not None and args.tile < SMALLEST_TILE:
        raise CascadeError(f"A tile is at least {SMALLEST_TILE} pixels wide, not {args.tile}.")
    return None if args.tile is None else Tiles(args.tile, args.tile // 4)


def count(text: str) -> int:
    """A number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not 0 to 1")
    return number


def finite(text: str) -> float:
    """A number."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a number")
    return number


def positive(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def strength(text: str) -> float:
    """A number above 0, up to 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


def sampler_name(text: str) -> str:
    """A name of the library's samplers, which are imported only where one is asked for: that takes seconds."""
    from ..diffusion import SAMPLERS

    if text not in SAMPLERS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SAMPLERS)}")
    return text


def say_tiny_is_used(prompt: str) -> None:
    """Say that the tiny cascade makes the image, and what of the prompt it does not know."""
    from ..tiny import grammar

    say("Using the tiny cascade that ships with this package. For the released networks give --models DIR.")
    if hint := grammar.hint(prompt):
        say(hint)


def say(line: str) -> None:
    """Print a message on standard error: standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def read_image(path: Path) -> Tensor:
    """[1, 3, H, W] of a file. Raises InvalidImage for one that is no image, OSError for one that is not there."""
    from ..images import from_pillow, open_image, read_file

    content = read_file(path)
    try:
        with open_image(content) as image:
            return from_pillow(image)
    except InvalidImage as error:
        raise InvalidImage(f"{path}: this cannot be read as an image: {error}") from error


def output_paths(output: Path | None, number: int) -> list[Path]:
    """Where the images go: `output` itself for one, `output-1` and so on for several, else the next free names.

    Raises CascadeError where no image could be written, before the work is done.
    """
    if output is None:
        taken = (Path(f"cascade-{i}.png") for i in range(1, 1_000_000))
        free = (path for path in taken if not path.exists())
        return [next(free) for _ in range(number)]
    from PIL import Image

    check_name(output)
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise CascadeError(f"{output}: no image format has this ending; use .png, .jpg or .webp.")
    if not output.absolute().parent.is_dir():
        raise CascadeError(f"{output}: there is no folder {output.absolute().parent}.")
    if number == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i}") for i in range(1, number + 1)]


def settings_of(args: argparse.Namespace, image: Tensor | None = None) -> Settings:
    """The settings of `add_stages` and `add_tile`.

    With an image [1, 3, H, W] and no size, the usual size in the image's proportions. Raises CascadeError for settings
    that cannot be used.
    """
    from ..pipelines import PRESETS, Settings, latent_sizes, with_short_side

    preset = PRESETS[args.preset]
    side = Settings().width if args.models else TINY_SIDE
    height, width = (side, side) if image is None else with_short_side(image.shape[-2], image.shape[-1], side)
    width = width if args.width is None else args.width
    height = height if args.height is None else args.height
    latent_sizes(height, width)
    return Settings(
        width=width,
        height=height,
        tiles=tiles_of(args),
        stage_c=stage_of(args, preset.stage_c),
        stage_b=stage_of(args, preset.stage_b, "_b"),
    )


def stage_of(args: argparse.Namespace, released: SamplingSettings, end: str = "") -> SamplingSettings:
    """The settings of a stage with what was given in their place; `end` is that of its options' names.

    Raises CascadeError for settings that cannot be used.
    """
    try:
        guidance = replace(released.guidance, **_given(args, GUIDANCE, end))
        return replace(released, guidance=guidance, cache=_cache_of(args, end), **_given(args, SAMPLING, end))
    except ValueError as error:
        raise CascadeError(f"Stage {'B' if end else 'C'}: {error}.") from error


def _cache_of(args: argparse.Namespace, end: str) -> Cache | None:
    """What was asked for; None for nothing."""
    from ..diffusion import Cache

    given = {name.removeprefix("cache_"): value for name, value in _given(args, CACHE, end).items()}
    return Cache(**given) if given else None


def _given(args: argparse.Namespace, names: Sequence[str], end: str) -> dict[str, Any]:
    """name -> value of the options that were given."""
    values = {name: getattr(args, name + end, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def parts_of(args: argparse.Namespace, needed: Sequence[str] = NEEDED) -> Parts:
    """The networks of `add_networks`. Raises MissingPart where one of those needed is not there, CascadeError."""
    import torch

    from .. import tiny
    from ..pipelines import Parts, find_parts

    device = _device(args.device or ("cuda" if args.models and torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    if not args.models:
        # Its layers are too small to share: on a busy machine a second thread made it 20 times slower.
        torch.set_num_threads(1)
        return Parts(tiny.parts(), device, dtype, _loras(args))
    found = find_parts(args.models)
    for kind, path in found.items():
        if kind in needed:
            say(f"{kind}: {path}")
    missing = [kind for kind in needed if kind not in found]
    for kind in missing:
        say(f"{kind}: not found ({RELEASED_FILES[kind]})")
    if missing:
        raise MissingPart(f"{', '.join(missing)} not found in {', '.join(str(path) for path in args.models)}")
    return Parts(found, device, dtype, _loras(args))


def _loras(args: argparse.Namespace) -> list[Applied]:
    from .. import tiny
    from ..adapters import Applied, read_lora
    from ..pipelines import PRESETS

    found = []
    if PRESETS[getattr(args, "preset", "released")].few_steps:
        if args.models and not args.lora:
            raise CascadeError(
                "--preset turbo needs LoRAs made for a few steps: give them with --lora FILE; the training task "
                "distill makes them. --preset fast needs none."
            )
        if not args.models:
            found = tiny.turbo()
    for text in args.lora:
        file, _, number = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            strength = float(number)
        except ValueError:
            raise CascadeError(f"--lora {text}: {number!r} is not a strength; write FILE=0.8") from None
        found.append(Applied(read_lora(tiny.path("lora") if file == "tiny" else file), strength, strength, strength))
    return found


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CascadeError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


class Bars:
    """A progress bar for each stage, and what the stages say of their run, on standard error."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.stage = ""
        self.logger, self.handler = logging.getLogger("cascade"), logging.StreamHandler()
        self.level = self.logger.level

    def __enter__(self) -> Bars:
        self.logger.addHandler(self.handler)
        self.logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.logger.removeHandler(self.handler)
        self.logger.setLevel(self.level)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, stage: str, i: int, n: int, x0: Tensor) -> None:
        from tqdm import tqdm

        if stage != self.stage:
            self._close()
            self.bar, self.stage = tqdm(total=n, desc=stage.replace("_", " ").title(), disable=None), stage
        self.bar.update(i + 1 - self.bar.n)


@contextmanager
def counter(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error as a callback (done, total)."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit, disable=None) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def recipe_of(args: argparse.Namespace, settings: Settings, **more: Any) -> dict[str, Any]:
    """How the images were made, for `save`. Files are named without their folders, which are private."""
    return {
        **more,
        **({} if args.preset == "released" else {"preset": args.preset}),
        "width": settings.width,
        "height": settings.height,
        "stage_c": stage_recipe(args, settings.stage_c),
        "stage_b": stage_recipe(args, settings.stage_b, "_b"),
        **({} if args.tile is None else {"tile": args.tile}),
        **({"lora": [Path(text).name for text in args.lora]} if args.lora else {}),
        "models": [path.name for path in args.models] if args.models else "tiny",
    }


def stage_recipe(args: argparse.Namespace, stage: SamplingSettings, end: str = "") -> dict[str, Any]:
    """Steps and cfg of a stage, and the other options that were given; `end` as in `stage_of`."""
    return {"steps": stage.steps, "cfg": stage.guidance.cfg, **_given(args, (*SAMPLING, *GUIDANCE, *CACHE), end)}


def save(image: Any, path: Path, recipe: Mapping[str, Any]) -> None:
    """Write an image; a PNG carries the recipe, from which it can be made again."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any] = {"format": Image.registered_extensions()[path.suffix.lower()]}
    if options["format"] == "PNG":
        options["pnginfo"] = info = PngInfo()
        info.add_itxt("cascade", json.dumps(recipe, ensure_ascii=False))
    write_atomically(path, lambda temporary: image.save(temporary, **options))
