"""The library's cache across steps, in a MODEL: with any of the host's samplers."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...cascade.diffusion import Cache, CacheRun
from ...cascade.errors import CascadeError
from . import checks
from .networks import CACHING, Hosted
from .sampling import percent_of


class Caching:
    """Wraps the runs and the steps of a MODEL."""

    def __init__(self, cache: Cache) -> None:
        self.run = CacheRun(cache)
        self.percent: float | None = None
        """Of the step that is computed; None between steps."""

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around a run."""
        self.run.reset()
        try:
            return executor(*args, **kwargs)
        finally:
            checks.report(self.run.report().capitalize())
            self.run.reset()

    def predict(self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
        """Around the predictions of a step, x0 with the prompt and without."""
        # Nodes such as PerturbedAttentionGuidance compute further ones of a changed network, each by itself.
        if len(conds) != 2:
            return executor(model, conds, x, timestep, options)
        sigma = float(timestep[0])
        self.percent = percent_of(sigma, model.model_sampling)
        compute = partial(executor, model)
        try:
            if None in conds:
                return compute(conds, x, timestep, options)
            # x0 is x minus sigma times what the network predicts.
            return self.run.predictions(
                self.percent,
                lambda: tuple(compute(conds, x, timestep, options)),
                lambda: compute([conds[0], None], x, timestep, options)[0],
                scale=sigma,
            )
        finally:
            self.percent = None


def cached(model: Any, cache: Cache) -> Any:
    """The MODEL with a cache. Raises CascadeError for one that is not ours."""
    if not isinstance(model.model.diffusion_model, Hosted):
        raise CascadeError(
            "This takes a model from Load Stage C, Load Stage B or Load Checkpoint of Stable Cascade; the one that is "
            "connected was loaded by another node."
        )
    changed, caching = model.clone(), Caching(cache)
    for event, wrapper in ((WrappersMP.OUTER_SAMPLE, caching.sample), (WrappersMP.CALC_COND_BATCH, caching.predict)):
        changed.remove_wrappers_with_key(event, CACHING)
        changed.add_wrapper_with_key(event, CACHING, wrapper)
    changed.model_options["transformer_options"][CACHING] = caching
    return changed
