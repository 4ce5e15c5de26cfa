"""Noise that depends on the image's seed, not on its position in a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Noise = Callable[[Tensor, int], Tensor]

START = -1


def digest(data: bytes) -> int:
    """63 well mixed bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class SeededNoise:
    """`noise(like, step)`: standard normal noise of like's shape [B, ...], dtype and device, image i from seeds[i].

    It depends only on seed, step, stream and shape, and is computed on the CPU: the same on any device, alone or in a
    batch, and in any order of steps. Different streams ("stage_c", "stage_b") make the two runs for one image
    independent.
    """

    seeds: Sequence[int]
    stream: str = ""

    @classmethod
    def of(cls, x: Tensor) -> SeededNoise:
        """Seeds computed from each image of x [B, ...], for callers without seeds."""
        return cls([digest(image.detach().cpu().float().numpy().tobytes()) for image in x])

    def start(self, *shape: int) -> Tensor:
        """The noise a run starts from: [B, *shape], float32, on the CPU."""
        return self(torch.empty(len(self.seeds), *shape), START)

    def __call__(self, like: Tensor, step: int) -> Tensor:
        if len(like) != len(self.seeds):
            raise ValueError(f"{len(self.seeds)} seeds for a batch of {len(like)}")
        images = [
            torch.randn(
                like.shape[1:], generator=torch.Generator().manual_seed(digest(f"{seed}/{step}/{self.stream}".encode()))
            )
            for seed in self.seeds
        ]
        noise = torch.stack(images)
        # From pinned memory the copy to a graphics card does not wait for the work that is queued there.
        return (noise.pin_memory() if like.is_cuda else noise).to(like, non_blocking=True)
