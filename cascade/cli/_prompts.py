"""`generate --prompts FILE`: one image for each line of a file, over several processes where torchrun starts them."""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CascadeError
from ._common import GUIDANCE, NEEDED, SAMPLING, counter, parts_of, recipe_of, save, say, settings_of

if TYPE_CHECKING:
    from ..pipelines import HighRes, Parts, Settings

OWN = ("negative", "seed", "width", "height", *SAMPLING, *GUIDANCE, *(f"{name}_b" for name in (*SAMPLING, "cfg")))
"""The options that a line can give for itself, by their names in the code."""
NOT_WITH_PROMPTS = ("image", "like", "unlike", "weight", "mask", "control", "region", "prior", "ip_image")
DIGITS = 5


@dataclass(frozen=True)
class Line:
    """A line of the file, counted from 1: what it gives, or why it cannot be used."""

    number: int
    values: Mapping[str, Any]
    error: str = ""


@dataclass(frozen=True)
class Job:
    """One image."""

    line: int
    prompt: str
    negative: str
    seed: int
    settings: Settings
    recipe: Mapping[str, Any]


class Process(NamedTuple):
    """This process among those that torchrun started."""

    rank: int
    world_size: int
    local_rank: int

    @classmethod
    def this(cls) -> Process:
        """From torchrun's environment; without it, the only one."""
        return cls(*(int(os.environ.get(name, first)) for name, first in _ALONE.items()))


_ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def check(args: argparse.Namespace) -> None:
    """Raises CascadeError for options that cannot be used with --prompts."""
    if args.prompt is not None:
        raise CascadeError("Give a prompt or --prompts FILE, not both.")
    if args.output is None:
        raise CascadeError("--prompts needs -o FOLDER, the folder for the images.")
    if args.output.exists() and not args.output.is_dir():
        raise CascadeError(f"-o {args.output}: with --prompts this is a folder, and there is a file of that name.")
    if args.number != 1:
        raise CascadeError("--number cannot be used with --prompts: each line is one image. Repeat the line.")
    for name in NOT_WITH_PROMPTS:
        if getattr(args, name):
            raise CascadeError(f"--{name.replace('_', '-')} cannot be used with --prompts.")


def run(
    args: argparse.Namespace,
    about: Mapping[str, Any],
    high_res: Callable[[argparse.Namespace, Parts], HighRes | None],
) -> int:
    """Make the images that are not there yet; 1 if a line failed.

    about: what the recipe of every image says. high_res: loads the guides.
    """
    process = Process.this()
    lines = read_lines(args.prompts)
    jobs, failed = jobs_of(args, about, lines)
    args.output.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(args.output, process)
    if process.rank == 0:
        for line, error in failed.items():
            manifest.add({"line": line, "error": error})
            say(f"{args.prompts}, line {line}: {error}")
    batches = list(batches_of(jobs, args.batch_size))[process.rank :: process.world_size]
    waiting = [left for batch in batches if (left := [job for job in batch if not manifest.has(job)])]
    if waiting:
        failed |= _made(args, waiting, manifest, process, high_res)
    done = sum(map(len, batches)) - sum(map(len, waiting))
    if done:
        say(f"{done} of the images were there already.")
    print(args.output)
    return 1 if failed else 0


def read_lines(path: Path) -> list[Line]:
    """The lines of a .txt file (prompts), a .csv file with a header, or a .jsonl file (objects or prompts).

    Raises CascadeError for other files, and for a file that is no text.
    """
    readers = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise CascadeError(f"{path}: --prompts reads {', '.join(readers)} files.")
    try:
        lines = list(reader(path.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError as error:
        raise CascadeError(f"{path}: this is not text in UTF-8 (byte {error.start}).") from error
    except csv.Error as error:
        raise CascadeError(f"{path}: this is not a CSV file: {error}.") from error
    if not lines:
        raise CascadeError(f"{path}: there are no prompts in it.")
    return lines


def _read_txt(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield Line(number, {"prompt": line.strip()})


def _read_csv(text: str) -> Iterator[Line]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    for row in reader:
        values = {(name or "").strip(): value for name, value in row.items() if value}
        yield Line(reader.line_num, values)


def _read_jsonl(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Line(number, {}, f"this is not JSON: {error}")
            continue
        if isinstance(found, str):
            yield Line(number, {"prompt": found})
        elif isinstance(found, dict):
            yield Line(number, found)
        else:
            yield Line(number, {}, "this is neither an object nor a prompt")


def jobs_of(
    args: argparse.Namespace, about: Mapping[str, Any], lines: Sequence[Line]
) -> tuple[list[Job], dict[int, str]]:
    """The images to make, and for the lines that cannot be used, why."""
    jobs, failed = [], {}
    for index, line in enumerate(lines):
        try:
            jobs.append(_job(args, about, line, index))
        except CascadeError as error:
            failed[line.number] = str(error)
    return jobs, failed


def _job(args: argparse.Namespace, about: Mapping[str, Any], line: Line, index: int) -> Job:
    if line.error:
        raise CascadeError(line.error)
    values = dict(line.values)
    prompt = values.pop("prompt", None)
    if not isinstance(prompt, str):
        raise CascadeError("there is no prompt")
    own = copy.copy(args)
    own.seed = args.seed + index
    for name, value in values.items():
        action = _option(args.parser, str(name))
        setattr(own, action.dest, _read(action, str(name), value))
    settings = replace(settings_of(own), enlarge=args.enlarge)
    recipe = recipe_of(own, settings, prompt=prompt, negative=own.negative, seed=own.seed, **about)
    return Job(line.number, prompt, own.negative, own.seed, settings, recipe)


def _option(parser: argparse.ArgumentParser, name: str) -> argparse.Action:
    """The option that a line means by a name: `cfg`, `steps_b`, `steps-b`, `sampler`."""
    written = f"--{name.replace('_', '-')}"
    options = [each for each in parser._actions if each.dest in OWN and each.help != argparse.SUPPRESS]
    for option in options:
        if written in option.option_strings or name == option.dest:
            return option
    names = ", ".join(option.option_strings[0].removeprefix("--").replace("-", "_") for option in options)
    raise CascadeError(f"a line cannot give {name[:80]!r}; it can give prompt, {names}")


def _read(action: argparse.Action, name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CascadeError(f"{name} is {json.dumps(value)[:80]}, not a number or a text")
    read = action.type if callable(action.type) else str
    try:
        return read(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        reason = str(error) if isinstance(error, argparse.ArgumentTypeError) else f"{value!r} is not a number"
        raise CascadeError(f"{name}: {reason}") from error


def batches_of(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Jobs with the same settings, at most `size` together. They do not depend on the number of processes, nor on what
    is done already: so that an image is the same in every case.
    """
    alike: dict[Any, list[Job]] = {}
    for job in jobs:
        alike.setdefault((job.settings, job.negative), []).append(job)
    for group in alike.values():
        for first in range(0, len(group), size):
            yield group[first : first + size]


class Manifest:
    """`manifest.jsonl`: a line for each image, with its file, seed and settings. Each process writes its own file."""

    def __init__(self, folder: Path, process: Process) -> None:
        self.folder = folder
        part = "" if process.world_size == 1 else f"-{process.rank + 1}-of-{process.world_size}"
        self.path = folder / f"manifest{part}.jsonl"
        self.entries: dict[int, Any] = {}
        for path in sorted(folder.glob("manifest*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self.entries[entry["line"]] = entry
                except (ValueError, TypeError, KeyError):
                    continue  # a process was killed while it wrote this line

    def image(self, job: Job) -> Path:
        """The image's file."""
        return self.folder / f"{job.line:0{DIGITS}}.png"

    def entry(self, job: Job) -> dict[str, Any]:
        """The line of a job that is done."""
        return {"line": job.line, "image": self.image(job).name, **job.recipe}

    def has(self, job: Job) -> bool:
        """Whether the image is there, made with the same settings."""
        return self.image(job).exists() and self.entries.get(job.line) == json.loads(json.dumps(self.entry(job)))

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _made(
    args: argparse.Namespace,
    batches: Sequence[Sequence[Job]],
    manifest: Manifest,
    process: Process,
    high_res: Callable[[argparse.Namespace, Parts], HighRes | None],
) -> dict[int, str]:
    """Make the images; the lines that failed, and why."""
    import torch

    from ..images import to_pillow
    from ..pipelines import generate

    if args.device is None and args.models and torch.cuda.is_available():
        args.device = f"cuda:{process.local_rank}"
    parts = _loaded(parts_of(args))
    guides = high_res(args, parts)
    failed: dict[int, str] = {}
    made, total = 0, sum(map(len, batches))
    title = f"Images {process.rank + 1}/{process.world_size}" if process.world_size > 1 else "Images"
    with counter(title, "image") as bar:
        for batch in batches:
            try:
                images = generate(
                    parts,
                    [job.prompt for job in batch],
                    seeds=[job.seed for job in batch],
                    negative=batch[0].negative,
                    high_res=guides,
                    settings=batch[0].settings,
                ).images
            except (CascadeError, ValueError, torch.OutOfMemoryError) as error:
                reason = " ".join(str(error).split())
                for job in batch:
                    manifest.add({"line": job.line, "error": reason})
                    say(f"{args.prompts}, line {job.line}: {reason}")
                failed |= {job.line: reason for job in batch}
                continue
            for job, image in zip(batch, images, strict=True):
                save(to_pillow(image), manifest.image(job), job.recipe)
                manifest.add(manifest.entry(job))
            made += len(batch)
            bar(made, total)
    return failed


def _loaded(parts: Parts) -> Parts:
    """The same networks, read once and kept."""
    kept: dict[str, Any] = {}
    for kind in NEEDED:
        parts.use(kind, lambda net, kind=kind: kept.setdefault(kind, net))
    return replace(parts, sources=kept)
