"""`python -m cascade inspect FILE...`: what checkpoint files contain."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ..errors import CascadeError

if TYPE_CHECKING:
    from ..checkpoints import Inspection

COLUMNS = ("what", "layout", "dtype", "parameters", "folder")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="describe checkpoint files",
        description="Describe each file: network and size, layout, type of its tensors, parameters, and the folder "
        "under ComfyUI/models where it belongs. Only headers are read. The exit status is 1 if a file is not readable.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a checkpoint file, or a folder of diffusers")
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects, with configs")


def run(args: argparse.Namespace) -> int:
    from ..checkpoints import inspect_file
    from . import describe

    found: list[Inspection] = []
    broken = 0
    for file in args.files:
        try:
            found.append(inspect_file(file))
        except (CascadeError, OSError) as error:
            print(f"error: {describe(error)}", file=sys.stderr)
            broken += 1
    if args.json:
        print(json.dumps([each.to_dict() for each in found], indent=2))
    elif found:
        print(_table(found))
    return 1 if broken else 0


def _table(found: list[Inspection]) -> str:
    rows: list[tuple[str, ...]] = [("file", *COLUMNS)]
    for each in found:
        rows.append((each.path, *_cells(each)))
        rows += [("  " + part.kind, *_cells(part)) for part in each.parts]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = rows[0].index("parameters")
    lines = (
        "  ".join(
            cell.rjust(width) if i == right else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _cells(each: Inspection) -> tuple[str, ...]:
    from ..checkpoints.inspection import LAYOUT_TITLES

    what = f"{len(each.parts)} networks" if each.parts else each.variant
    return what, LAYOUT_TITLES[each.layout], each.dtype, f"{each.parameters:,}", each.folder
