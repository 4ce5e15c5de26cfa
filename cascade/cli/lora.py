"""`python -m cascade lora info|convert|merge|extract`: LoRA files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError
from ..files import check_name

if TYPE_CHECKING:
    from ..adapters import Lora
    from ..models import StageCConfig

FORMATS = ("comfyui", "cascade", "kohya", "onetrainer", "onetrainer_diffusers", "omi", "peft", "released", "embedding")
DTYPES = ("float32", "bfloat16", "float16")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "lora",
        help="describe, convert, merge and extract LoRAs",
        description="LoRA files of any trainer: describe them, convert them to another format, merge them into a "
        "checkpoint, or extract one from two checkpoints.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="describe LoRA files")
    info.add_argument("files", nargs="+", metavar="FILE")
    info.add_argument("--json", action="store_true", help="print a JSON list of objects")
    _add_reading(info)
    convert = actions.add_parser("convert", help="write a LoRA in another format")
    convert.add_argument("source", metavar="SOURCE")
    convert.add_argument("target", metavar="TARGET", help="the .safetensors file to write")
    convert.add_argument(
        "--text-encoder", metavar="FILE", help="makes the vectors of tokens that have an initializer absolute"
    )
    _add_reading(convert)
    _add_writing(convert)
    merge = actions.add_parser("merge", help="add LoRAs to the weights of a checkpoint")
    merge.add_argument("checkpoint", metavar="CHECKPOINT", help="a Stage C or a text encoder")
    merge.add_argument("loras", nargs="+", metavar="LORA")
    merge.add_argument("target", metavar="TARGET", help="the .safetensors file to write")
    merge.add_argument(
        "--strength", type=float, action="append", metavar="S", help="for all LoRAs, or once for each; default 1"
    )
    _add_part(merge)
    extract = actions.add_parser("extract", help="extract a LoRA from two checkpoints")
    extract.add_argument("base", metavar="BASE")
    extract.add_argument("tuned", metavar="TUNED")
    extract.add_argument("target", metavar="TARGET", help="the .safetensors file to write")
    extract.add_argument("--rank", type=int, default=16, metavar="N", help="rank of the LoRA; default %(default)s")
    extract.add_argument("--only", action="append", metavar="TEXT", help="only parameters whose names contain this")
    _add_part(extract)
    _add_writing(extract)


def _add_part(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", metavar="KIND", help="the network to use if files contain several, such as stage_c")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", metavar="FILE", help="its Stage C; the released format needs it for sizes that were not released"
    )
    parser.add_argument(
        "--token",
        action="append",
        default=[],
        metavar="TOKEN[=INITIALIZER]",
        help="how prompts write a learned token that has no name in its file and, for the released trainer's, its "
        "initializer as in the trainer's YAML: [fernando]=^dog</w>",
    )


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="format to write; default %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the tensors; default: unchanged")


def run(args: argparse.Namespace) -> int:
    if args.action != "info":
        check_name(Path(args.target))
    try:
        return {"info": _info, "convert": _convert, "merge": _merge, "extract": _extract}[args.action](args)
    except ValueError as error:
        raise CascadeError(str(error)) from error


def _read(args: argparse.Namespace, file: str) -> Lora:
    from ..adapters import read_lora
    from ..adapters.tokens import parse_token_names

    return read_lora(file, config=_config(args.base), tokens=parse_token_names(args.token))


def _config(file: str | None) -> StageCConfig | None:
    """The config of a Stage C file; its weights are not read."""
    from ..checkpoints import load_model

    return None if file is None else load_model(file, part="stage_c").config


def _config_of(net: Any) -> StageCConfig | None:
    """The config of a Stage C; None for another network."""
    from ..models import StageC

    return net.config if isinstance(net, StageC) else None


def _info(args: argparse.Namespace) -> int:
    from . import describe

    found: list[dict[str, Any]] = []
    for file in args.files:
        try:
            found.append(_described(file, _read(args, file)))
        except (CascadeError, OSError) as error:
            print(f"error: {describe(error)}", file=sys.stderr)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for each in found:
            print("\n".join(f"{name:8} {value}" for name, value in each.items()))
    return 1 if len(found) < len(args.files) else 0


def _described(file: str, lora: Lora) -> dict[str, Any]:
    from ..adapters import metadata_of
    from ..adapters.reading import METADATA

    described = json.loads(metadata_of(lora, lora.format)[METADATA])
    changes = {kind: len(changes) for kind, changes in lora.changes.items()}
    return {"file": file, **described, "changes": changes}


def _convert(args: argparse.Namespace) -> int:
    from ..adapters import absolute, save_lora
    from ..adapters.lora import TABLE
    from ..checkpoints import load_model

    lora = _read(args, args.source)
    if args.text_encoder is not None:
        from ..conditioning import tokenizer

        net = load_model(args.text_encoder, part="text_encoder")
        lora = absolute(lora, net.get_parameter(TABLE).data, tokenizer())
    save_lora(lora, args.target, format=args.format, config=_config(args.base), dtype=_dtype(args))
    return 0


def _dtype(args: argparse.Namespace) -> Any:
    import torch

    return None if args.dtype is None else getattr(torch, args.dtype)


def _merge(args: argparse.Namespace) -> int:
    from ..adapters import Applied, merge, read_lora
    from ..checkpoints import load_model, save_model

    strengths = args.strength or [1.0]
    if len(strengths) not in (1, len(args.loras)):
        given = f"--strength was given {len(strengths)} times for {len(args.loras)} LoRAs"
        raise CascadeError(f"{given}: give it once, or once for each")
    strengths = strengths * len(args.loras) if len(strengths) == 1 else strengths
    if Path(args.target).exists() and Path(args.target).samefile(args.checkpoint):
        raise CascadeError(f"{args.target}: source and target are the same; write to another name")
    net = load_model(args.checkpoint, part=args.part)
    config = _config_of(net)
    applied = [Applied(read_lora(f, config=config), s, s, s) for f, s in zip(args.loras, strengths, strict=True)]
    changed = merge(applied, net)
    save_model(net, args.target)
    print(f"{changed} parameters changed")
    return 0


def _extract(args: argparse.Namespace) -> int:
    from ..adapters import extract, save_lora
    from ..checkpoints import load_model
    from ._common import counter

    base, tuned = (load_model(file, part=args.part) for file in (args.base, args.tuned))
    with counter(args.target, " parameters") as on_weight:
        lora = extract(base, tuned, args.rank, only=args.only or [""], on_weight=on_weight)
    save_lora(lora, args.target, format=args.format, config=_config_of(base), dtype=_dtype(args))
    return 0
