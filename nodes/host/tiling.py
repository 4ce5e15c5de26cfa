"""Stage B in tiles: any sampler's calls are split; each tile gets its own part of the conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...cascade.models import StageBConfig
from ...cascade.pipelines import Tiles
from ...cascade.pipelines.plan import in_tiles
from . import checks
from .networks import without_inner

KEY = "cascade_tiles"
SPATIAL = ("effnet", "pixels")
"""Stage B's conditions that have a position for each part of the image."""


@dataclass(frozen=True)
class TiledCalls:
    """Wraps a model's calls. `inner` is the wrapper that was there before."""

    tiles: Tiles
    config: StageBConfig
    inner: Callable[..., Tensor] | None = None

    def __call__(self, apply: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        x, conditions = args["input"], args["c"]
        if not self.tiles.needed(x.shape):
            return self._call(apply, args)
        spatial = {name: conditions[name] for name in SPATIAL if name in conditions}
        conditions = {**conditions, "transformer_options": without_inner(conditions["transformer_options"])}

        def predict(x: Tensor, part: Mapping[str, Tensor]) -> Tensor:
            return self._call(apply, {**args, "input": x, "c": {**conditions, **part}})

        return in_tiles(predict, x, spatial, self.tiles, self.config)

    def _call(self, apply: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        if self.inner is not None:
            return self.inner(apply, args)
        return apply(args["input"], args["timestep"], **args["c"])

    def prepare(self, executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Frees memory for a tile, not for the whole image."""
        tile = [*noise_shape[:-2], *(min(side, self.tiles.latent_size) for side in noise_shape[-2:])]
        return executor(model, tile, *args, **kwargs)


def tiled(model: Any, tiles: Tiles) -> Any:
    """The MODEL working in tiles."""
    changed = model.clone()
    config = getattr(model.model.diffusion_model, "config", None)
    inner = changed.model_options.get("model_function_wrapper")
    # The host's own network has no config. It has a released size, for which the default config is right.
    calls = TiledCalls(tiles, config if isinstance(config, StageBConfig) else StageBConfig(), inner)
    changed.set_model_unet_function_wrapper(calls)
    changed.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, calls.prepare)
    return changed


def too_large(model: Any, samples: Tensor) -> bool:
    """Whether a step with cfg on one of these latents would not fit into memory."""
    return checks.too_large(model.memory_required([2, *samples.shape[1:]]), model.load_device)
