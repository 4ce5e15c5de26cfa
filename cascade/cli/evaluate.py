"""`evaluate`: how well the images of a tiny cascade match its prompts, as a table."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CascadeError
from ..files import write_atomically
from ._common import add_preset, output_paths, save

SHOWN = 30
"""Images on a contact sheet."""
WITH_OWN_SETTINGS = ("lora", "high_res", "new_shapes")
"""Options that no preset changes."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure the tiny cascade",
        description="Generate images of prompts with fixed seeds, a third of them with combinations of color, shape "
        "and background that are kept from training, measure the images by plain image analysis, and print a table.",
    )
    parser.add_argument(
        "model", help="`tiny` for the shipped weights, or a folder with the seven files of another training"
    )
    parser.add_argument("--prompts", type=_positive, default=300, help="how many prompts (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other prompts and images (default: 0)")
    parser.add_argument(
        "--lora", action="store_true", help="measure what the included LoRA changes, and what it does not"
    )
    add_preset(parser)
    parser.add_argument("--strength", type=float, default=1.0, help="how strongly the LoRA acts (default: 1)")
    parser.add_argument(
        "--control", action="store_true", help="measure what the included ControlNets do, --prompts cases of each kind"
    )
    parser.add_argument(
        "--edit",
        action="store_true",
        help="measure edits of generated and of drawn images, by prompts and by instructions, maps of words and "
        "regional prompts, --prompts cases of each kind",
    )
    parser.add_argument(
        "--style",
        action="store_true",
        help="measure what images of reference, a shared style, image prompts, and the included IP-Adapter and prior "
        "do, --prompts cases of each kind",
    )
    parser.add_argument(
        "--high-res",
        action="store_true",
        help="measure the included high-res guides at 512 and 768 pixels, beside the ways without guides",
    )
    parser.add_argument(
        "--new-shapes",
        type=Path,
        metavar="DIR",
        help="teach four shapes that it was not trained on, a LoRA each in DIR, and measure them; the same command "
        "continues after a stop",
    )
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    parser.add_argument("-o", "--output", type=Path, metavar="TABLE.md", help="write the table to this file too")
    parser.add_argument("--sheet", type=Path, metavar="SHEET.png", help=f"save the first {SHOWN} images with prompts")


def run(args: argparse.Namespace) -> int:
    from .. import tiny
    from ..adapters import read_instruct, read_lora
    from ..pipelines import PRESETS, Parts
    from ..tiny import (
        control,
        editing,
        evaluation,
        high_res,
        image_prompt_evaluation,
        ip_adapter_evaluation,
        new_shapes,
        prior_evaluation,
        style_evaluation,
    )

    sources, folder = tiny.parts(), None
    if args.model != "tiny":
        folder = Path(args.model)
        sources = {kind: folder / path.name for kind, path in sources.items()}
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise CascadeError(f"{args.output}: there is no folder {args.output.absolute().parent}.")
    output_paths(args.sheet, 1)
    own = next((name for name in WITH_OWN_SETTINGS if getattr(args, name)), None)
    if own is not None and args.preset != "released":
        raise CascadeError(f"--{own.replace('_', '-')} is measured with the released settings: leave out --preset.")
    preset = PRESETS[args.preset]
    parts = Parts(sources, device=args.device, loras=tiny.turbo(folder) if preset.few_steps else [])
    settings = replace(evaluation.SETTINGS, stage_c=preset.stage_c, stage_b=preset.stage_b)
    if args.lora:
        result = evaluation.evaluate_lora(
            parts,
            read_lora(tiny.path("lora")),
            strength=args.strength,
            prompts=args.prompts,
            on_progress=_report,
        )
    elif args.new_shapes is not None:
        result = new_shapes.evaluate_new_shapes(parts, args.new_shapes, prompts=args.prompts, on_progress=_report)
    elif args.control:
        result = control.evaluate_control(
            parts, _controlnets(args), cases=args.prompts, settings=settings, on_progress=_report
        )
    elif args.edit:
        network = read_instruct(tiny.path(tiny.INSTRUCT) if folder is None else folder / tiny.path(tiny.INSTRUCT).name)
        result = editing.evaluate_edit(parts, network, cases=args.prompts, settings=settings, on_progress=_report)
    elif args.style:
        given = {"cases": args.prompts, "settings": settings, "on_progress": _report}
        found = [
            style_evaluation.evaluate_style(parts, **given),
            image_prompt_evaluation.image_prompt_rows(parts, **given),
            ip_adapter_evaluation.evaluate_ip_adapter(parts, _included(args, tiny.IP_ADAPTER, "ip_adapter"), **given),
            prior_evaluation.evaluate_prior(parts, _included(args, tiny.PRIOR, "prior"), **given),
        ]
        rows, samples = ([each for one in found for each in getattr(one, name)] for name in ("rows", "samples"))
        result = evaluation.Evaluation(tuple(rows), tuple(samples))
    elif args.high_res:
        guides = _included(args, tiny.GUIDES, "high_res_guides")
        result = high_res.evaluate_high_res(parts, guides, prompts=args.prompts, on_progress=_report)
    else:
        result = evaluation.evaluate(
            parts, prompts=args.prompts, seed=args.seed, settings=settings, on_progress=_report
        )
    table = result.markdown()
    print(table, end="")
    if args.output is not None:
        write_atomically(args.output, lambda path: path.write_text(table, encoding="utf-8"))
    if args.sheet is not None:
        save(evaluation.contact_sheet(result.samples[:SHOWN]), args.sheet, {})
    return 0


def _controlnets(args: argparse.Namespace) -> dict[str, Any]:
    """What they read -> network."""
    from .. import tiny

    return {name: _included(args, part, "controlnet") for name, part in tiny.CONTROLS.items()}


def _included(args: argparse.Namespace, name: str, part: str) -> Any:
    """A network beside the stages: the shipped one, or that of the folder."""
    import torch

    from .. import tiny
    from ..checkpoints import load_model

    path = tiny.path(name)
    path = path if args.model == "tiny" else Path(args.model) / path.name
    return load_model(path, part=part, dtype=torch.float32, device=args.device)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least one is needed")
    return number


def _report(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", file=sys.stderr)
