"""Control of attention in a MODEL's Stage C: the library's controllers, with any of the host's samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...cascade.editing import AttentionController, NetworkCall, Tokens
from ...cascade.models import AroundAttention
from . import checks
from .prompts import REGIONS
from .sampling import percent_of

ATTENTION = "cascade_attention"
"""Where the transformer_options have a `ControlledRuns`."""


class ControlledRuns:
    """A controller for each run of a MODEL, made for the shape [B, 16, h, w] of its latents."""

    def __init__(self, make: Callable[[Sequence[int]], AttentionController]) -> None:
        self._make = make
        self.controller: AttentionController | None = None
        """Of the run that goes on; None between runs."""

    def sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wraps a whole sampling run."""
        self.controller = self._make(noise.shape)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            self.controller = None


def controlled(model: Any, make: Callable[[Sequence[int]], AttentionController]) -> Any:
    """The MODEL with control of attention; `make` is called at the start of each run, see `ControlledRuns`.

    Raises CascadeError for a MODEL that is no Stage C.
    """
    changed, runs = checks.model(model, "Stage C").clone(), ControlledRuns(make)
    changed.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, ATTENTION)
    changed.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, ATTENTION, runs.sample)
    changed.model_options["transformer_options"][ATTENTION] = runs
    return changed


def around_attention(
    model: Any, t: Tensor, conditions: Mapping[str, Any], options: Mapping[str, Any]
) -> AroundAttention | None:
    """What attention blocks do in a call of the host's model at noise levels t, with these transformer_options."""
    runs = options.get(ATTENTION)
    controller = conditions.get(REGIONS) or (None if runs is None else runs.controller)
    if controller is None:
        return None
    named = {name: conditions[name] for name in ("clip_text", "clip_text_pooled", "clip_img")}
    tokens = Tokens.of(**named, each=model.diffusion_model.config.condition_tokens)
    # Reading the noise level waits for a graphics card, so only where something acts.
    percent = percent_of(float(t[0]), model.model_sampling)
    with_prompt = tuple(kind == 0 for kind in options.get("cond_or_uncond", [0]))
    return controller.around(NetworkCall(percent, with_prompt, tokens))
