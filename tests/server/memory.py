"""`python -m tests.server.memory`: what a server holds in memory after many runs of the templates."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Iterator, Sequence

from tests.server.prompts import Prompt
from tests.server.serving import Server, start
from tests.server.templates import prompts

MARKS = (20, 50, 100, 150, 200)
MEGABYTE = 1_000_000


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.server.memory", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("options", nargs="*", help="of the server, after --; such as -- --cache-none")
    options = parser.parse_args(words)
    server = start(os.environ["COMFYUI_PATH"], options=options.options)
    try:
        for number, held in growth(server, options.runs, options.steps):
            if number in MARKS or number == options.runs:
                print(f"run {number}: {held / MEGABYTE:,.0f} MB", flush=True)
    finally:
        server.stop()


def growth(server: Server, runs: int, steps: int) -> Iterator[tuple[int, int]]:
    """Run the templates round robin, each time with another seed: number of the run, bytes held after it."""
    templates = list(prompts(server, steps=steps).values())
    for number in range(1, runs + 1):
        history = server.run(with_seed(templates[number % len(templates)], number))
        assert history["status"]["status_str"] == "success", history["status"]
        yield number, server.memory()


def with_seed(prompt: Prompt, seed: int) -> Prompt:
    """A template with another seed in its nodes that have one."""
    changed = copy.deepcopy(prompt)
    for node in changed.values():
        node["inputs"] |= {name: seed for name in ("seed", "noise_seed") if name in node["inputs"]}
    return changed


if __name__ == "__main__":
    main()
