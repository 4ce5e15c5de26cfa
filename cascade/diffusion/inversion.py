"""Inversion: the noise with which a run of the sampler ends at a given image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .noise import START, Noise
from .process import RELEASED_DIFFUSION, Diffusion
from .settings import SamplingSettings


@dataclass(frozen=True)
class Inverted:
    """The noise of a run that ends at an image, in the place of a seed's: `inverted(like, step)`, as `SeededNoise`.

    starts: [steps, B, ...], the noise in the image at each step's noise level.
    added: [steps, B, ...], what the sampler adds after each step, as standard normal noise; the last is what the x0
        predicted at the last step lacks.
    """

    starts: Tensor
    added: Tensor

    def skipping(self, steps: int) -> Inverted:
        """The same without the first steps: the run starts later, nearer to the image."""
        return Inverted(self.starts[steps:], self.added[steps:])

    @classmethod
    def join(cls, parts: Sequence[Inverted]) -> Inverted:
        """Several as one batch."""
        return cls(torch.cat([part.starts for part in parts], 1), torch.cat([part.added for part in parts], 1))

    def of(self, rows: Sequence[int]) -> Inverted:
        """The same for some of the images; one may be taken several times."""
        return Inverted(self.starts[:, list(rows)], self.added[:, list(rows)])

    @property
    def rest(self) -> Tensor:
        """What the x0 predicted at the last step lacks, [B, ...]."""
        return self.added[-1]

    def start(self, *shape: int) -> Tensor:
        """The noise a run starts from, [B, *shape]."""
        return self.starts[0].reshape(-1, *shape)

    def __call__(self, like: Tensor, step: int) -> Tensor:
        return (self.starts[0] if step == START else self.added[step]).to(like)


class Inverting:
    """The noise of a run that comes to an image: given to `sample`, and recorded (Huberman-Spiegelglas et al. 2024).

    The image gets independent noise at each step's level; what the sampler must add to come from one to the next is the
    noise of the step. It is found as the run goes on, so that each noise makes up for the rounding before it.

    image: [B, ...], in the type and on the device of the run's states. settings: with a sampler that adds noise and has
    no memory, such as ddpm. noise: of the image at each step; the run starts from its START.
    """

    def __init__(
        self, image: Tensor, settings: SamplingSettings, noise: Noise, diffusion: Diffusion = RELEASED_DIFFUSION
    ) -> None:
        self.image, self.step, self.levels = image, settings.step, settings.noise_levels(diffusion)
        self.starts = [noise(image, START), *(noise(image, i) for i in range(1, len(self.levels)))]
        self.added = [torch.zeros_like(image) for _ in self.levels]
        self.predicted = image

    def on_step(self, i: int, n: int, x0: Tensor) -> None:
        """Must be called after each step of the network, as `sample` does."""
        self.predicted = x0.to(self.image)

    def __call__(self, state: Tensor, i: int) -> Tensor:
        """The noise of step i, which begins at this state."""
        here, there = self.levels[i], self.levels[i + 1]
        self.starts[i] = (state - here.a * self.image) / here.b
        epsilon = (state - here.a * self.predicted) / here.b
        mean = self.step(self.predicted, epsilon, here.factors, there.factors, partial(torch.zeros_like, state))
        nothing = torch.zeros(())
        gain = float(self.step(nothing, nothing, here.factors, there.factors, partial(torch.ones, ())))
        if gain:  # between equal levels nothing is added
            self.added[i] = (there.a * self.image + there.b * self.starts[i + 1] - mean) / gain
        return self.added[i]

    def found(self, x0: Tensor) -> Inverted:
        """What a run that ended at x0 has found."""
        self.added[-1] = self.image - x0.to(self.image)
        return Inverted(torch.stack(self.starts), torch.stack(self.added))
