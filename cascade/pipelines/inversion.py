"""Inverted images of Stage C, as they are kept and used: made once, for any number of edits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.header import parsed_json
from ..checkpoints.saving import save_tensors
from ..checkpoints.sources import TensorSource, open_tensors
from ..diffusion import Inverted, SamplingSettings
from ..errors import BrokenCheckpoint, IncompatibleCheckpoint, InvalidSettings, UnknownCheckpoint, shown
from ..models import StageC
from .plan import StagePlan, Start

METADATA = "cascade.inversion"
"""Where the metadata of a file have what an inversion was made with, as JSON."""
SIGNS = 64
"""Signs of a weight that count; one of a million is lost where float16 has 0."""
SAMPLER = "ddpm"
"""The sampler of inversions: the released one, which adds noise and has no memory."""


@dataclass(frozen=True)
class MadeWith:
    """What a run must share with an inversion.

    model: `fingerprint` of the Stage C. prompt, negative: of the images, where they are known.
    """

    steps: int
    cfg: float
    shift: float
    prompt: str = ""
    negative: str = ""
    model: str = ""

    @classmethod
    def of(cls, settings: SamplingSettings, **more: str) -> MadeWith:
        """With these settings. Raises InvalidSettings for what cannot be inverted."""
        if settings.sampler_name != SAMPLER:
            raise InvalidSettings(f"An inversion has the sampler {SAMPLER}, not {settings.sampler_name}.")
        if (settings.start_percent, settings.end_percent) != (0.0, 1.0):
            raise InvalidSettings("An inversion is made with a whole run: leave start_percent 0 and end_percent 1.")
        return cls(settings.steps, settings.guidance.cfg, settings.shift, **more)


@dataclass(frozen=True)
class Inversion:
    """Stage C's latents of images [B, 16, h, w], and the noise with which a run ends at them."""

    latents: Tensor
    noise: Inverted
    made: MadeWith

    def plan(self, plan: StagePlan[Any], skip: int) -> StagePlan[Any]:
        """A run of Stage C that starts at these images, with their noise, and leaves the first steps out.

        plan: with the size, the settings and a row of conditions for each image, or for each image several times, image
        after image in the same order.

        Raises InvalidSettings for a plan of other steps, shift, size or sampler, and where no step is left.
        """
        settings, made = plan.settings, self.made
        size, own = tuple(plan.size[-2:]), tuple(self.latents.shape[-2:])
        for what, wanted, given in (
            ("latents of height x width", " x ".join(map(str, own)), " x ".join(map(str, size))),
            ("steps", made.steps, settings.steps),
            ("shift", f"{made.shift:g}", f"{settings.shift:g}"),
            ("sampler_name", SAMPLER, settings.sampler_name),
        ):
            if wanted != given:
                raise InvalidSettings(
                    f"This inversion was made with {what} {wanted}, and the edit has {given}: use the same, or invert "
                    "the image again."
                )
        check_skip(skip, made.steps)
        if len(plan.seeds) % len(self.latents):
            raise InvalidSettings(
                f"This inversion has {len(self.latents)} images, and the edit {len(plan.seeds)}: invert as many."
            )
        rows = list(range(len(self.latents))) * (len(plan.seeds) // len(self.latents))
        run = replace(settings, steps=made.steps - skip, start_percent=skip / made.steps)
        mask = None if plan.start is None else plan.start.mask
        return replace(
            plan,
            settings=run,
            start=Start(latents=self.latents[rows], mask=mask),
            inverted=self.noise.skipping(skip).of(rows),
        )

    def check_model(self, net: StageC) -> None:
        """Raises IncompatibleCheckpoint for another Stage C than that of the inversion."""
        if fingerprint(net) != self.made.model:
            raise IncompatibleCheckpoint(
                "This inversion was made with another Stage C, whose noise does not fit this one: load that Stage C, "
                "or invert the image again."
            )

    def of(self, rows: Sequence[int]) -> Inversion:
        """For some of the images."""
        return replace(self, latents=self.latents[list(rows)], noise=self.noise.of(rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a safetensors file. Raises OSError."""
        tensors = {"latents": self.latents, "starts": self.noise.starts, "added": self.noise.added}
        floats = {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}
        save_tensors(floats, path, {"format": "pt", METADATA: json.dumps(asdict(self.made))})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inversion:
        """Read what `save` has written.

        Raises FileNotFoundError, UnknownCheckpoint for another kind of file, BrokenCheckpoint.
        """
        source = open_tensors(path).get("")
        if source is None or METADATA not in source.metadata:
            raise UnknownCheckpoint(
                "this is no inversion of an image: `python -m cascade edit FILE --inversion` makes them", path
            )
        made = _made_with(source)
        with source.reader() as get:
            tensors = {name: get(name).float() for name in ("latents", "starts", "added") if name in source.tensors}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        latents = shapes.get("latents", ())
        if len(latents) != 4 or not all(shapes.get(name) == (made.steps, *latents) for name in ("starts", "added")):
            raise BrokenCheckpoint(f"an inversion of {made.steps} steps whose tensors are {shown(shapes)}", path)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise BrokenCheckpoint("NaN or infinity in it", path)
        return cls(tensors["latents"], Inverted(tensors["starts"], tensors["added"]), made)


def _made_with(source: TensorSource) -> MadeWith:
    try:
        found = parsed_json(source.metadata[METADATA])
        kinds = {"model": str, "steps": int, "cfg": (int, float), "shift": (int, float), "prompt": str, "negative": str}
        if set(found) != set(kinds) or not all(isinstance(found[name], kind) for name, kind in kinds.items()):
            raise ValueError(f"its entries are {shown(found)}")
        return MadeWith(**found)
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokenCheckpoint(f"what it was made with cannot be read: {error}", source.path) from error


def check_skip(skip: int, steps: int) -> None:
    """Raises InvalidSettings for a number of steps to leave out of so many that leaves none."""
    if not 0 <= skip < steps:
        raise InvalidSettings(f"An edit of {steps} steps can skip 0 to {steps - 1}, not {skip}.")


@torch.no_grad()
def fingerprint(net: StageC) -> str:
    """The same for files of one Stage C in any type: of signs of weights, which neither types nor LoRAs change."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in net.named_parameters():
        if name.endswith((".gamma", ".beta")):
            signs = (tensor.detach().flatten()[:SIGNS] < 0).to("cpu", torch.uint8)
            found.update(f"{name} {tuple(tensor.shape)}".encode() + signs.numpy().tobytes())
    return found.hexdigest()
