"""`python -m tests.server`: attacks on a ComfyUI without end, or for some minutes; says how many and what failed.

COMFYUI_PATH says where it lies. It runs on this machine, with small networks and folders of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.server.attacks import KEEP, Attacks
from tests.server.serving import start


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.server", description=__doc__)
    parser.add_argument("--minutes", type=float, help="for all classes together; without it until Ctrl+C")
    parser.add_argument("--seed", default=str(secrets.randbelow(2**32)), help="the same cases again")
    parser.add_argument("--class", dest="names", action="append", help="again for several; default all")
    parser.add_argument("--keep", type=Path, help="folder for what is known of the cases that fail")
    parser.add_argument("--case", type=int, help="only this case of the class")
    options = parser.parse_args(words)
    print(f"seed {options.seed}")
    server = start(os.environ["COMFYUI_PATH"], options=KEEP)
    try:
        return run(Attacks(server), options)
    finally:
        server.stop()


def run(attacks: Attacks, options: argparse.Namespace) -> int:
    """Run cases; 1 if one failed, else 0."""
    names = options.names or list(attacks.all)
    counts, failures = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    end = time.monotonic() + 60 * options.minutes if options.minutes is not None else float("inf")
    try:
        for index in [options.case] if options.case is not None else range(sys.maxsize):
            for name in names:
                problem = attacks.all[name](random.Random(f"{options.seed} {name} {index}"))
                counts[name] += 1
                if problem is not None:
                    failures[name] += 1
                    report(f"--class {name} --seed {options.seed} --case {index}\n{problem}\n", options.keep)
            if time.monotonic() > end:
                break
    except KeyboardInterrupt:
        pass
    for name in names:
        print(f"{name}: {counts[name]:,} cases, {failures[name]:,} failed")
    return 1 if any(failures.values()) else 0


def report(problem: str, keep: Path | None) -> None:
    print(problem.encode("utf-8", "backslashreplace").decode(), flush=True)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        name = problem.splitlines()[0].replace("--", "").replace(" ", "-")
        (keep / f"{name}.txt").write_text(problem, encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
