"""Our networks as the host calls them: its layers, its attention, its wrappers and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...cascade.errors import CascadeError
from ...cascade.models import AroundAttention, Conditions, StageB, StageC
from ...cascade.models.blocks import AttnBlock
from ...cascade.models.stack import AroundInner

HostControl = Mapping[str, list[Tensor | None]]
"""The host's: under "input", residuals of which the last is for the first block."""


CACHING = "cascade_cache"
"""Where the transformer_options have a `caching.Caching`."""


def around_inner(options: Mapping[str, Any]) -> AroundInner | None:
    """What the network does about its inner levels in the call with these transformer_options."""
    caching = options.get(CACHING)
    if caching is None or caching.percent is None:
        return None
    return caching.run.around_inner(options["uuids"], caching.percent)


def without_inner(options: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer_options for calls that keep nothing: different tiles have the same conditions."""
    return {name: value for name, value in options.items() if name != CACHING}


class LayerFactory:
    """The host's layers, of one type and on one device: what our networks take as `ops`."""

    def __init__(self, operations: Any, dtype: torch.dtype | None, device: torch.device | None = None) -> None:
        for name in ("Linear", "Conv2d", "ConvTranspose2d", "LayerNorm"):
            setattr(self, name, partial(getattr(operations, name), dtype=dtype, device=device))


class HostAttention:
    """The host's attention, with the options of the current call (where nodes may replace attention).

    The host's layers notice the stop button; attention is the one call that takes minutes for very large images. There
    it runs on a part of the queries at a time, which gives the same result.
    """

    PAIRS = 2**27
    """The most pairs of a query and a key in a call."""

    def __init__(self) -> None:
        self.options: Mapping[str, Any] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        rows = max(1, self.PAIRS // k.shape[1])
        if q.shape[1] <= rows:
            return self._attend(q, k, v, heads)
        parts = []
        for part in q.split(rows, dim=1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            parts.append(self._attend(part, k, v, heads))
        return torch.cat(parts, dim=1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return optimized_attention(q, k, v, heads, transformer_options=self.options)


class BlockAttention:
    """The attention of one block. In the middle of the stack other nodes may replace that of the image over itself."""

    MIDDLE = ("middle", 0)
    """What nodes such as PerturbedAttentionGuidance call the place."""

    def __init__(self, attend: HostAttention, middle: bool) -> None:
        self.attend, self.middle = attend, middle

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        replacement = _replacements(self.attend.options, "attn1").get(self.MIDDLE) if self.middle else None
        if replacement is None:
            return self.attend(q, k, v, heads)
        # The image's own tokens come first, as many as there are queries.
        own = q.shape[1]
        return replacement(q, k[:, :own], v[:, :own], {**self.attend.options, "n_heads": heads})


def _replacements(options: Mapping[str, Any], kind: str) -> Mapping[Any, Any]:
    """What other nodes put in the place of blocks of a kind."""
    return options.get("patches_replace", {}).get(kind, {})


AFTER_ATTENTION = "cascade_after_attention"
"""In a MODEL's transformer_options: (network, x, r, options) -> what acts after attention blocks in this call."""


class ConditionCache:
    """What depends on the conditions alone, kept from step to step of a run.

    Other nodes may make new tensors of the conditions for every step, so those that are not the same are compared by
    value. The weights must not change: whoever changes them calls `clear`. Nothing is kept while gradients are
    computed.
    """

    LIMIT = 8
    """The most entries, to bound the memory; older ones are computed again."""

    def __init__(self) -> None:
        self.entries: list[tuple[dict[str, Any], Conditions]] = []

    def clear(self) -> None:
        self.entries.clear()

    def get(self, inputs: dict[str, Any], compute: Callable[..., Conditions]) -> Conditions:
        """`compute(**inputs)`, or its earlier result for equal inputs."""
        if torch.is_grad_enabled():
            return compute(**inputs)
        # All entries are looked at before tensors are compared, for which a graphics card would wait.
        for same in (_identical, _equal):
            for known, conditions in self.entries:
                if all(same(known[name], value) for name, value in inputs.items()):
                    return conditions
        conditions = compute(**inputs)
        self.entries = [*self.entries[1 - self.LIMIT :], (inputs, conditions)]
        return conditions


def _identical(first: Any, second: Any) -> bool:
    return first is second or (isinstance(first, tuple) and first == second)


def _equal(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return _identical(first, second)
    like = (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)
    return like and (first is second or torch.equal(first, second))


def _placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return value.to(device=device, dtype=dtype) if isinstance(value, Tensor) else value


class Hosted:
    """Base class that adapts a network of `cascade.models` to the host; weights keep their names."""

    def __init__(self, *, config: Any, dtype: Any = None, device: Any = None, operations: Any, **_: Any) -> None:
        attend = HostAttention()
        super().__init__(config, ops=LayerFactory(operations, dtype, device), attention=attend)  # type: ignore[call-arg]
        self.attend, self.dtype, self.cache = attend, dtype, ConditionCache()
        # The host's networks have it, and RenormCFG reads it.
        self.in_channels = config.latent_channels
        self._open_blocks()

    def _open_blocks(self) -> None:
        """The attention blocks as places for other nodes.

        SkipLayerGuidanceDiT numbers them as double blocks on the way down and single blocks on the way up. The middle
        eighth is the middle block of PerturbedAttentionGuidance.
        """
        paths = {"double_block": self.down_blocks, "single_block": self.up_blocks}  # type: ignore[attr-defined]
        count = len(self.blocks(AttnBlock))  # type: ignore[attr-defined]
        reach = max(1, count // 16)
        for name, path in paths.items():
            blocks = [block for level in path for block in level if isinstance(block, AttnBlock)]
            for number, block in enumerate(blocks):
                middle = abs(block.number - (count - 1) / 2) < reach
                block.attend = BlockAttention(self.attend, middle)
                block.register_forward_hook(partial(self._replaced, (name, number)))

    def _replaced(self, place: tuple[str, int], block: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The output of an attention block, or what another node makes of it."""
        replacement = _replacements(self.attend.options, "dit").get(place)
        if replacement is None:
            return output
        return replacement({"img": inputs[0]}, {"original_block": lambda _: {"img": output}})["img"]

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        control: HostControl | None = None,
        transformer_options: dict[str, Any] | None = None,
        *,
        conditions: Conditions,
        around_inner: AroundInner | None = None,
        around_attention: AroundAttention | None = None,
    ) -> Tensor:
        """The host's call: `timestep` is r, the conditions are from `prepared`."""
        options = {} if transformer_options is None else transformer_options
        # Nodes such as EasyCache wrap the network here, and expect the options as the last argument.
        wrapped = WrapperExecutor.new_class_executor(
            self._run, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        )
        around = {"around_inner": around_inner, "around_attention": around_attention}
        return wrapped.execute(x, timestep, context, control, options, conditions=conditions, **around)

    def prepared(self, x: Tensor, conditions: Mapping[str, Any], dtype: torch.dtype) -> Conditions:
        """What depends on the conditions of the model's `extra_conds` alone, computed in this type for latents x.

        It is decided here, before `forward`, whether they are known: torch.compile cannot do that inside it.
        """

        def compute(**inputs: Any) -> Conditions:
            placed = {name: _placed(value, x.device, dtype) for name, value in inputs.items()}
            return self.conditions(**placed)  # type: ignore[attr-defined]

        return self.cache.get(self._inputs(x, conditions), compute)

    def _run(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Any,
        control: Any,
        transformer_options: Any,
        conditions: Conditions,
        around_inner: AroundInner | None = None,
        around_attention: AroundAttention | None = None,
    ) -> Tensor:
        self.attend.options = transformer_options
        acting = transformer_options.get(AFTER_ATTENTION)
        return self.denoise(  # type: ignore[attr-defined]
            x,
            timestep,
            conditions,
            control=self._residuals(control, x),
            after_attention=None if acting is None else acting(self, x, timestep, transformer_options),
            around_inner=around_inner,
            around_attention=around_attention,
        )

    def _residuals(self, control: HostControl | None, x: Tensor) -> list[Tensor | None] | None:
        """The host's control for the blocks, in order of execution; a stage without control ignores it."""
        return None

    def _inputs(self, x: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `conditions`."""
        raise NotImplementedError


# The host calls by its own names.
class HostStageC(Hosted, StageC):  # pyright: ignore[reportIncompatibleMethodOverride]
    def _inputs(self, x: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
        names = ("clip_text", "clip_text_pooled", "clip_img", "sca", "crp")
        return {name: conditions.get(name) for name in names}

    def _residuals(self, control: HostControl | None, x: Tensor) -> list[Tensor | None] | None:
        if control is None or not control.get("input"):
            return None
        widths = [level.width for level in self.config.levels]
        for residual in control["input"]:
            if residual is not None and residual.shape[1] not in widths:
                raise CascadeError(
                    f"This ControlNet was made for a Stage C of width {residual.shape[1]}, this one's is {widths[0]} "
                    "(2048: 3.6B, 1536: 1B). Load the ControlNet or the Stage C that belongs to the other."
                )
        return list(reversed(control["input"]))


class HostStageB(Hosted, StageB):  # pyright: ignore[reportIncompatibleMethodOverride]
    def _inputs(self, x: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: conditions.get(name) for name in ("effnet", "clip", "pixels", "sca")}
        return {**found, "size": tuple(x.shape[-2:])}
