"""What a training computes from its images, made and checked before it: `python -m cascade prepare`."""

from __future__ import annotations

from ..errors import InvalidConfig
from .cache import Cache
from .config import TrainingConfig
from .data import shared
from .processes import joined
from .tasks import TASKS, ProgressBars


def prepare(config: TrainingConfig, *, progress: ProgressBars | None = None) -> list[str]:
    """Make the caches of a training, all processes together, and check every byte of those that were there; lines about
    them. Shards that are damaged are made again.

    Raises as its task.
    """
    if config.settings.images.stream:
        raise InvalidConfig(f"{config.task}: images: with stream nothing is prepared; set it to false")
    with joined() as processes, shared(processes, check=True) as caches:
        bars = progress if processes.first else None
        TASKS[config.task].task(config, bars(f"{config.task} images", "image") if bars else None)
        return [_described(cache) for cache in caches]


def _described(cache: Cache) -> str:
    size = sum(shard.length for shard in cache.shards)
    shapes = ", ".join(f"{shape}: {count}" for shape, count in zip(cache.sizes, cache.counts, strict=True))
    return f"{cache.place}: {len(cache)} rows ({shapes}), {len(cache.shards)} shards, {size / 1e9:.3f} GB"
