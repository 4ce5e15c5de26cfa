"""Control of attention in a MODEL's Stage C: the library's controllers, with any of the host's samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...cascade.conditioning import StageCInputs
from ...cascade.editing import AttentionController, IPAdapters, NetworkCall, Tokens
from ...cascade.errors import InvalidSettings
from ...cascade.models import AroundAttention
from . import checks
from .prompts import REGIONS
from .sampling import percent_of

ATTENTION = "cascade_attention"
"""Where the transformer_options have a `ControlledRuns`."""


class ControlledRuns:
    """A controller for each run of a MODEL, made for the shape [B, 16, h, w] of its latents."""

    def __init__(self, make: Callable[[Sequence[int]], AttentionController]) -> None:
        self.make = make
        self.controller: AttentionController | None = None
        """Of the run that goes on; None between runs."""
        self._joined: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        """What `images` found in this run, with what it was made of."""

    def sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wraps a whole sampling run."""
        self.controller = self.make(noise.shape)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            self.controller = None
            self._joined.clear()

    def images(self, given: Mapping[str, Any], kinds: Sequence[int]) -> Tensor:
        """Stage C's image embeddings [B, k, c] with those that the controller adds: zeros where the prompt is not.

        given: the conditions of a call. kinds: for each equal part of the batch 0 where its conditions are those with
        the prompt. The same tensor for the same conditions in all steps, which then are known to be the same.
        """
        if self.controller is None:
            return given["clip_img"]
        key = (id(given["clip_img"]), *kinds)
        if key not in self._joined:
            parts = zip(*(given[name].chunk(len(kinds)) for name in CONDITIONS), strict=True)
            found = [_added(self.controller, StageCInputs(*part), kind == 0) for kind, part in zip(kinds, parts)]
            self._joined[key] = given["clip_img"], torch.cat(found)
        return self._joined[key][1]


CONDITIONS = ("clip_text", "clip_text_pooled", "clip_img")
"""Stage C's, in the order of `StageCInputs`."""


def _added(controller: AttentionController, cond: StageCInputs, with_prompt: bool) -> Tensor:
    images, own = controller.inputs(cond).clip_img, cond.clip_img.shape[1]
    return images if with_prompt else torch.cat([images[:, :own], torch.zeros_like(images[:, own:])], dim=1)


def controlled(model: Any, make: Callable[[Sequence[int]], AttentionController]) -> Any:
    """The MODEL with control of attention; `make` is called at the start of each run, see `ControlledRuns`.

    Raises CascadeError for a MODEL that is no Stage C.
    """
    changed, runs = checks.model(model, "Stage C").clone(), ControlledRuns(make)
    changed.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, ATTENTION)
    changed.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, ATTENTION, runs.sample)
    changed.model_options["transformer_options"][ATTENTION] = runs
    return changed


def controlled_within(model: Any, around: Callable[[AttentionController | None], AttentionController]) -> Any:
    """As `controlled`, beside what controls attention in the MODEL already, of which `around` makes a controller."""
    before = model.model_options["transformer_options"].get(ATTENTION)
    return controlled(model, lambda shape: around(None if before is None else before.make(shape)))


def with_additions(conditions: Mapping[str, Any], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The conditions of a call of the host's model with what its controller adds to them.

    Raises InvalidSettings where two controllers would act.
    """
    runs = options.get(ATTENTION)
    if runs is None or runs.controller is None:
        return conditions
    alone = not isinstance(runs.controller, IPAdapters) or runs.controller.within is not None
    if alone and conditions.get(REGIONS) is not None:
        raise InvalidSettings(
            "Regional prompts and image prompts with weights, a mask, a part of the run or of the blocks control "
            "attention, and so does a node on the model, such as Style Reference: use one of them."
        )
    images = runs.images(conditions, options.get("cond_or_uncond", [0]))
    return conditions if images is conditions["clip_img"] else {**conditions, "clip_img": images}


def around_attention(
    model: Any, t: Tensor, conditions: Mapping[str, Any], options: Mapping[str, Any]
) -> AroundAttention | None:
    """What attention blocks do in a call of the host's model at noise levels t, with these transformer_options."""
    runs = options.get(ATTENTION)
    controller, regions = None if runs is None else runs.controller, conditions.get(REGIONS)
    if controller is None and regions is None:
        return None
    config = model.diffusion_model.config
    named = {name: conditions[name] for name in CONDITIONS}
    tokens = Tokens.of(**named, each=config.condition_tokens)
    # Reading the noise level waits for a graphics card, so only where something acts.
    percent = percent_of(float(t[0]), model.model_sampling)
    with_prompt = tuple(kind == 0 for kind in options.get("cond_or_uncond", [0]))
    call = NetworkCall(percent, with_prompt, tokens, config.attention_blocks)
    inner = None if regions is None else regions.around(call)
    if controller is None:
        return inner
    return controller.over(call, inner) if isinstance(controller, IPAdapters) and regions else controller.around(call)
