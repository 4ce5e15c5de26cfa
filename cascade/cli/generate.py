"""`python -m cascade generate`: a prompt to pictures."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError, MissingPart

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapters import Applied
    from ..pipelines import Parts, SamplingSettings, Settings

RELEASED = {
    "text_encoder": "text_encoder/model.safetensors, or in stable_cascade_stage_c.safetensors; ComfyUI: text_encoders",
    "stage_c": "stage_c.safetensors or stage_c_lite.safetensors; ComfyUI: diffusion_models",
    "stage_b": "stage_b.safetensors or stage_b_lite.safetensors; ComfyUI: diffusion_models",
    "stage_a": "stage_a.safetensors, or in stable_cascade_stage_b.safetensors; ComfyUI: vae",
}
"""What `generate` needs, the released file that has it, and ComfyUI's folder for it."""
DESCRIPTION = """Make pictures from a prompt: with the tiny cascade that ships with this package, or, with --models,
with the released networks."""
EXAMPLES = """examples:
  python -m cascade generate "a large red circle on a blue background, left" -o circle.png
  python -m cascade generate "a small yellow star" --negative red --number 4 --seed 7
  python -m cascade generate "an owl in the snow" --models ComfyUI/models --width 1280 --height 832 -o owl.png"""


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "generate",
        help="make pictures from a prompt",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", help="what the picture shows")
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what to keep away")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the next free cascade-N.png")
    parser.add_argument("--number", type=_count, default=1, metavar="N", help="how many pictures; default 1")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture, one more for each next; default 0")
    for side in ("width", "height"):
        parser.add_argument(f"--{side}", type=int, metavar="PIXELS", help="default 1024, with the tiny cascade 256")
    for stage, suffix, steps, guidance in (("C", "", 20, 4.0), ("B", "-b", 10, 1.1)):
        group = parser.add_argument_group(f"Stage {stage}")
        group.add_argument(f"--steps{suffix}", type=_count, default=steps, metavar="N", help=f"default {steps}")
        group.add_argument(
            f"--guidance{suffix}", type=float, default=guidance, metavar="SCALE", help="default %(default)s"
        )
    group = parser.add_argument_group("networks")
    group.add_argument(
        "--models",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder with the released networks, or a file; may be repeated; files are told apart by what is in them",
    )
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="a LoRA of any trainer, whose words the prompt may use; may be repeated; `tiny` is the included one",
    )
    group.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps; default cuda where there is one, for the tiny cascade cpu"
    )
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default bfloat16 on cuda, else float32"
    )


def run(args: argparse.Namespace) -> int:
    """Make the pictures and write them; 0."""
    paths = output_paths(args.output, args.number)
    if not args.models:
        _tell_of_tiny("" if args.lora else args.prompt)
    from ..images import to_pillow
    from ..pipelines import generate, latent_sizes

    settings = _settings(args)
    latent_sizes(settings.height, settings.width)
    seeds = [args.seed + i for i in range(args.number)]
    with _Bars() as bars:
        result = generate(
            _parts(args),
            [args.prompt] * args.number,
            seeds=seeds,
            negative=args.negative,
            settings=settings,
            on_progress=bars,
        )
    for path, seed, image in zip(paths, seeds, result.images, strict=True):
        _save(to_pillow(image), path, _recipe(args, settings, seed))
        print(path)
    return 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _tell_of_tiny(prompt: str) -> None:
    from ..tiny import grammar

    _say("Drawing with the tiny cascade that ships with this package; for the released networks give --models DIR.")
    if hint := grammar.hint(prompt):
        _say(hint)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def output_paths(output: Path | None, number: int) -> list[Path]:
    """Where the pictures go: `output` itself for one, `output-1` and so on for several, else the next free names.

    Raises CascadeError where no picture could be written, before the work is done.
    """
    if output is None:
        taken = (Path(f"cascade-{i}.png") for i in range(1, 1_000_000))
        free = (path for path in taken if not path.exists())
        return [next(free) for _ in range(number)]
    from PIL import Image

    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise CascadeError(f"{output}: no picture format has this ending; use .png, .jpg or .webp.")
    if not output.absolute().parent.is_dir():
        raise CascadeError(f"{output}: there is no folder {output.absolute().parent}.")
    if number == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i}") for i in range(1, number + 1)]


def _settings(args: argparse.Namespace) -> Settings:
    from ..pipelines import Settings

    def changed(stage: SamplingSettings, steps: int, scale: float) -> SamplingSettings:
        return replace(stage, steps=steps, guidance=replace(stage.guidance, scale=scale))

    released = Settings()
    side = released.width if args.models else 256
    return Settings(
        width=side if args.width is None else args.width,
        height=side if args.height is None else args.height,
        stage_c=changed(released.stage_c, args.steps, args.guidance),
        stage_b=changed(released.stage_b, args.steps_b, args.guidance_b),
    )


def _parts(args: argparse.Namespace) -> Parts:
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
        if kind in RELEASED:
            _say(f"{kind}: {path}")
    missing = [kind for kind in RELEASED if kind not in found]
    for kind in missing:
        _say(f"{kind}: not found ({RELEASED[kind]})")
    if missing:
        raise MissingPart(f"{', '.join(missing)} not found in {', '.join(str(path) for path in args.models)}")
    return Parts(found, device, dtype, _loras(args))


def _loras(args: argparse.Namespace) -> list[Applied]:
    from .. import tiny
    from ..adapters import Applied, read_lora

    found = []
    for text in args.lora:
        file, _, number = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            strength = float(number)
        except ValueError:
            raise CascadeError(f"--lora {text}: {number!r} is no strength; write FILE=0.8") from None
        found.append(Applied(read_lora(tiny.path("lora") if file == "tiny" else file), strength, strength))
    return found


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CascadeError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


class _Bars:
    """A progress bar for each stage, on standard error."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.stage = ""

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, stage: str, i: int, n: int, x0: Tensor) -> None:
        from tqdm import tqdm

        if stage != self.stage:
            self.__exit__()
            self.bar, self.stage = tqdm(total=n, desc=stage.replace("_", " ").title(), disable=None), stage
        self.bar.update(i + 1 - self.bar.n)


def _recipe(args: argparse.Namespace, settings: Settings, seed: int) -> dict[str, Any]:
    """All that is needed to make the picture again."""
    stages = {"stage_c": settings.stage_c, "stage_b": settings.stage_b}
    return {
        "prompt": args.prompt,
        "negative": args.negative,
        "seed": seed,
        "width": settings.width,
        "height": settings.height,
        **{name: {"steps": stage.steps, "guidance": stage.guidance.scale} for name, stage in stages.items()},
        # Names only: where somebody's folders are is nobody's business who sees the picture.
        **({"loras": [Path(text).name for text in args.lora]} if args.lora else {}),
        "models": [path.name for path in args.models] if args.models else "tiny",
    }


def _save(picture: Any, path: Path, recipe: dict[str, Any]) -> None:
    if path.suffix.lower() != ".png":
        picture.save(path)
        return
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("cascade", json.dumps(recipe, ensure_ascii=False))
    picture.save(path, pnginfo=info)
