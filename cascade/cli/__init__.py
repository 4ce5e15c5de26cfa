"""The command line. One module a command, each with `add_parser(subparsers)` and `run(args) -> int`.

A command's module is imported to describe itself; what is heavy (torch, the networks) it imports when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import CascadeError

INTERRUPTED = 130
"""The exit status that shells expect of a program ended by Ctrl-C."""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command of this package."""
    parser = argparse.ArgumentParser(prog="python -m cascade", description="Stable Cascade from the command line.")
    parser.add_argument("--version", action="version", version=f"cascade {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            command = importlib.import_module(f".{module.name}", __package__)
            command.add_parser(subparsers)
            subparsers.choices[module.name].set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. An error that the user can fix is one line, without a traceback."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, `less`) has ended. Python would print another error when it flushes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CascadeError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1


def describe(error: BaseException) -> str:
    """An error in one line: for an error of the operating system the file and what is wrong, without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    line = " ".join(str(error).split()) or type(error).__name__
    # Names that were read from a file may hold control characters of the terminal.
    return "".join(c if c.isprintable() else "?" for c in line)
