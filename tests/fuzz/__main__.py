"""`python -m tests.fuzz`: cases without end, or for some minutes; says how many of each class ran and what failed."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .classes import all_classes
from .running import Runner


def main(arguments: Sequence[str] | None = None) -> int:
    names = list(all_classes())
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="for all classes together; without it until Ctrl+C")
    parser.add_argument("--seed", default=str(secrets.randbelow(2**32)), help="the same cases again")
    parser.add_argument("--class", dest="names", action="append", choices=names, help="again for several; default all")
    parser.add_argument("--keep", type=Path, help="folder for the cases that fail")
    parser.add_argument("--case", type=int, help="only this case of the class")
    options = parser.parse_args(arguments)
    names = options.names or names
    print(f"seed {options.seed}")
    counts, failures = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    end = time.monotonic() + 60 * options.minutes if options.minutes is not None else float("inf")
    indices = iter([options.case]) if options.case is not None else iter(range(sys.maxsize))
    with Runner(options.keep) as runner:
        try:
            for index in indices:
                for name in names:
                    problem = runner.run(name, options.seed, index)
                    counts[name] += 1
                    if problem is not None:
                        failures[name] += 1
                        print(f"--class {name} --seed {options.seed} --case {index}\n{problem}\n", flush=True)
                if time.monotonic() > end:
                    break
        except KeyboardInterrupt:
            pass
    for name in names:
        print(f"{name}: {counts[name]:,} cases, {failures[name]:,} failed")
    return 1 if any(failures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
