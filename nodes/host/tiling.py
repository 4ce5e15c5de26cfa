"""Stage B in tiles: every call of the network, whatever the sampler, with each tile's own part of the conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...cascade.images import Box, blended
from ...cascade.models.blocks import resize
from ...cascade.pipelines.sizes import STAGE_B_FACTOR
from . import checks

KEY = "cascade_tiles"
PATCH = 2
"""Latents to a side of what Stage B works on."""
ALIGN = 16
"""Tiles start at multiples of this, so that they are halved as the whole would be."""
SPATIAL = ("effnet", "pixels")


@dataclass(frozen=True)
class TiledCalls:
    """Stands around a model's calls; side and overlap in latents. `inner` is what stood there before."""

    side: int
    overlap: int
    inner: Callable[..., Tensor] | None = None

    def __call__(self, apply: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x, conditions = args["input"], args["c"]
        if max(x.shape[-2:]) <= self.side:
            return self._call(apply, args)
        grid = tuple(-(-side // PATCH) for side in x.shape[-2:])
        spatial = {name: resize(conditions[name], grid) for name in SPATIAL if name in conditions}

        def part(x: Tensor, box: Box) -> Tensor:
            own = {name: box.scaled(1, PATCH).of(cond) for name, cond in spatial.items()}
            return self._call(apply, {**args, "input": x, "c": {**conditions, **own}})

        return blended(part, x, side=self.side, overlap=self.overlap, align=ALIGN)

    def _call(self, apply: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        if self.inner is not None:
            return self.inner(apply, args)
        return apply(args["input"], args["timestep"], **args["c"])

    def prepare(self, executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Memory is made free for a tile, not for the whole."""
        tile = [*noise_shape[:-2], *(min(side, self.side) for side in noise_shape[-2:])]
        return executor(model, tile, *args, **kwargs)


def tiled(model: Any, side: int = 1024, overlap: int = 256) -> Any:
    """The MODEL working in tiles; side and overlap in pixels. Raises ValueError for tiles that would not get on."""
    if overlap > side // 2:
        raise ValueError(f"Tiles of {side} pixels cannot overlap by {overlap}: at most by half.")
    changed = model.clone()
    inner = changed.model_options.get("model_function_wrapper")
    calls = TiledCalls(side // STAGE_B_FACTOR, overlap // STAGE_B_FACTOR, inner)
    changed.set_model_unet_function_wrapper(calls)
    changed.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, calls.prepare)
    return changed


def too_large(model: Any, samples: Tensor) -> bool:
    """Whether a step on one of these latents, guided, would not fit into the memory that can be made free."""
    return checks.too_large(model.memory_required([2, *samples.shape[1:]]), model.load_device)
