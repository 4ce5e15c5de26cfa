"""The stack of Stage B and Stage C: a down path and an up path through the levels, with skips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .blocks import (
    AroundAttention,
    Attention,
    AttnBlock,
    FeedForwardBlock,
    LayerNorm2d,
    ResBlock,
    TimestepBlock,
    on_stream,
    resize,
    stream,
    timestep_embedding,
)
from .config import Level, StackConfig
from .layers import layer_factory

Residuals = Sequence[Tensor | None]
"""A ControlNet's: [B, c, h, w] or None for each residual block, in order of execution; may be shorter."""


AfterAttention = Mapping[int, Callable[[Tensor], Tensor]]
"""Number of an attention block -> what is done with the stream [B, c, h, w] after it."""

AroundInner = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Of the inner levels and the stream [B, c, h, w] that enters them: what leaves them, of the same shape. It may return
what they gave at an earlier step."""


class Places(NamedTuple):
    """Numbers of the first attention block of each level, on the way down and on the way up."""

    down: tuple[int, ...]
    up: tuple[int, ...]


class Conditions(NamedTuple):
    """What a run computes once, not once a step; every tensor is batch first.

    Attributes:
        keys_values: for each attention block, its keys and values [B, n, c] of the conditions' tokens.
        modulations: for each timestep block, the modulation [B, 2c] from the extra timestep conditions.
        spatial: what is added to the embedded latent [B, c, h, w] (Stage B), or None (Stage C).
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    modulations: tuple[Tensor, ...]
    spatial: Tensor | None = None


class Rescale(nn.ModuleList):
    """Norm, then the change of width and size between two levels."""

    def __init__(self, width: int, change: nn.Module) -> None:
        super().__init__([LayerNorm2d(width), change])

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return stream(self[1](self[0](x).to(dtype)))


class Stack(nn.Module):
    """Embedding, levels down, levels up, output. Subclasses define the changes between levels, and the conditions."""

    def __init__(self, config: StackConfig, ops: Any, attention: Attention) -> None:
        super().__init__()
        ops = layer_factory(ops)
        self.config = config
        self.gradient_checkpointing = False
        """Whether blocks are calculated again in the backward pass, in place of keeping what they calculated."""
        levels, patch = config.levels, config.patch_size
        folded = config.latent_channels * patch**2
        self.clip_norm = nn.LayerNorm(config.condition_channels, eps=1e-6, elementwise_affine=False)
        self.embedding = nn.Sequential(
            nn.PixelUnshuffle(patch), ops.Conv2d(folded, levels[0].width, 1), LayerNorm2d(levels[0].width)
        )
        self.down_blocks = _lists(_blocks(config, level, 0, ops, attention) for level in levels)
        self.down_downscalers = nn.ModuleList([nn.Identity(), *(self._down(i, ops) for i in range(1, len(levels)))])
        self.down_repeat_mappers = _lists(_repeats(level.width, level.down_repeats, ops) for level in levels)
        self.up_blocks = _lists(
            _blocks(config, level, 0 if level is levels[-1] else level.width, ops, attention) for level in levels[::-1]
        )
        self.up_upscalers = nn.ModuleList([*(self._up(i, ops) for i in range(len(levels) - 1, 0, -1)), nn.Identity()])
        self.up_repeat_mappers = _lists(_repeats(level.width, level.up_repeats, ops) for level in levels[::-1])
        self.clf = nn.Sequential(
            LayerNorm2d(levels[0].width), ops.Conv2d(levels[0].width, folded, 1), nn.PixelShuffle(patch)
        )

        for kind in (AttnBlock, TimestepBlock):
            for number, block in enumerate(self.blocks(kind)):
                block.number = number

    def _down(self, level: int, ops: Any) -> nn.Module:
        """From level - 1 to level."""
        raise NotImplementedError

    def _up(self, level: int, ops: Any) -> nn.Module:
        """From level to level - 1."""
        raise NotImplementedError

    def blocks(self, kind: type) -> list[Any]:
        """The blocks of one class, down first, in the order in which they run."""
        paths = (*self.down_blocks, *self.up_blocks)
        return [block for path in paths for block in path if isinstance(block, kind)]

    def places(self) -> Places:
        """Where a high-res guide acts: after the first attention block of each level that has one."""
        attention = (
            [[block.number for block in blocks if isinstance(block, AttnBlock)] for blocks in path]
            for path in (self.down_blocks, self.up_blocks)
        )
        return Places(*(tuple(numbers[0] for numbers in levels if numbers) for levels in attention))

    def _conditions(self, tokens: Tensor, extra: dict[str, Tensor | None], spatial: Tensor | None) -> Conditions:
        """Conditions of tokens [B, n, c] and of the extra timestep conditions, each [B] or None for 0."""
        zeros = torch.zeros(tokens.shape[0], device=tokens.device)
        given = {name: zeros if value is None else value for name, value in extra.items()}
        names = self.config.timestep_conditions
        embeddings = {name: self._embed_timestep(given[name], tokens.dtype) for name in names}
        tokens = self.clip_norm(tokens)
        return Conditions(
            keys_values=tuple(block.keys_values(tokens) for block in self.blocks(AttnBlock)),
            modulations=tuple(block.steady(embeddings) for block in self.blocks(TimestepBlock) if embeddings),
            spatial=spatial,
        )

    def _embed_timestep(self, r: Tensor, dtype: torch.dtype) -> Tensor:
        embedding = timestep_embedding(r, self.config.timestep_channels)
        return embedding if dtype == torch.float16 else embedding.to(dtype)

    def _pooled_tokens(self, mapper: nn.Module, pooled: Tensor) -> Tensor:
        """Pooled embeddings [B, k, c] or [B, c] as tokens [B, k * condition_tokens, condition_channels]."""
        pooled = pooled.unsqueeze(1) if pooled.dim() == 2 else pooled
        return mapper(pooled).unflatten(-1, (self.config.condition_tokens, -1)).flatten(1, 2)

    def denoise(
        self,
        x: Tensor,
        r: Tensor,
        conditions: Conditions,
        *,
        control: Residuals | None = None,
        after_attention: AfterAttention | None = None,
        around_inner: AroundInner | None = None,
        around_attention: AroundAttention | None = None,
    ) -> Tensor:
        """The prediction [B, c, h, w] for latents x [B, c, h, w] at noise conditions r [B] in [0, 1].

        Args:
            conditions: from `conditions(...)` with the same batch (and, for Stage B, the same size).
            control: a residual [B, c, h', w'] or None for each residual block in order of execution.
            after_attention: functions of the stream [B, c, h, w] by the number of the attention block after which they
                act, at its first run.
            around_inner: see `AroundInner`; None runs the inner levels.
            around_attention: what every attention block does instead of its own attention, see `AttentionCall`.
        """
        size, dtype = x.shape[-2:], x.dtype
        embedding = self._embed_timestep(r, dtype)
        after = dict(after_attention or {})
        run = _Run(dtype, embedding, conditions, iter(control or ()), after, around_inner, around_attention)
        run.checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()
        x = stream(self.embedding(self._padded(x)))
        if conditions.spatial is not None:
            x = x + conditions.spatial
        x = self._levels(run, x)
        x = self.clf[1](self.clf[0](x).to(dtype))
        return self.clf[2](x)[..., : size[0], : size[1]]

    def _padded(self, x: Tensor) -> Tensor:
        """x with its last row and column repeated up to a multiple of the patch."""
        bottom, right = (-n % self.config.patch_size for n in x.shape[-2:])
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x

    def _levels(self, run: _Run, x: Tensor, level: int = 0) -> Tensor:
        """From a level to the innermost and back."""
        down, up = level, len(self.config.levels) - 1 - level
        x = run.rescale(self.down_downscalers[down], x)
        for repeat in (None, *self.down_repeat_mappers[down]):
            x = x if repeat is None else on_stream(repeat, x)
            for block in self.down_blocks[down]:
                x = run.block(block, x)
        skip = None
        if up > 0:
            skip, x = x, self._inside(run, x, level)
        for repeat in (None, *self.up_repeat_mappers[up]):
            x = x if repeat is None else on_stream(repeat, x)
            for index, block in enumerate(self.up_blocks[up]):
                x = run.block(block, x, skip if index == 0 else None)
        return run.rescale(self.up_upscalers[up], x)

    def _inside(self, run: _Run, x: Tensor, level: int) -> Tensor:
        """What the levels inside of a level make of its stream, at its size; those of the outermost may be reused."""

        def levels(x: Tensor) -> Tensor:
            return resize(self._levels(run, x, level + 1), x.shape[-2:])

        if run.around_inner is None or level > 0:
            return levels(x)
        # Their residuals are taken out whether they run or not: those that follow belong to the blocks that follow.
        after, run.residuals = run.residuals, iter(list(islice(run.residuals, self._inner_residuals)))
        x = run.around_inner(levels, x)
        run.residuals = after
        return x

    @cached_property
    def _inner_residuals(self) -> int:
        """How many runs of residual blocks are in the inner levels."""
        paths = [*zip(self.down_blocks[1:], self.down_repeat_mappers[1:])]
        paths += zip(self.up_blocks[:-1], self.up_repeat_mappers[:-1])
        return sum(sum(isinstance(block, ResBlock) for block in blocks) * (1 + len(maps)) for blocks, maps in paths)


class _Run:
    """One pass through a stack: passes to each block what it reads in addition to the image."""

    checkpointing = False

    def __init__(
        self,
        dtype: torch.dtype,
        embedding: Tensor,
        conditions: Conditions,
        residuals: Iterator[Tensor | None],
        after_attention: dict[int, Callable[[Tensor], Tensor]],
        around_inner: AroundInner | None,
        around_attention: AroundAttention | None,
    ) -> None:
        self.dtype, self.embedding, self.conditions, self.residuals = dtype, embedding, conditions, residuals
        self.after_attention, self.around_inner = after_attention, around_inner
        self.around_attention = around_attention

    def rescale(self, scaler: nn.Module, x: Tensor) -> Tensor:
        return scaler(x, self.dtype) if isinstance(scaler, Rescale) else x

    def block(self, block: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
        match block:
            case ResBlock():
                residual = next(self.residuals, None)
                if residual is not None:
                    # The stream is float32 in a float16 network, whatever the residual's type.
                    x = x + resize(residual, x.shape[-2:]).to(x)
                return self._call(block, x, self.dtype, skip)
            case TimestepBlock():
                modulations = self.conditions.modulations
                return self._call(block, x, self.embedding, modulations[block.number] if modulations else None)
            case AttnBlock():
                keys_values = self.conditions.keys_values[block.number]
                x = self._call(block, x, self.dtype, keys_values, self.around_attention)
                then = self.after_attention.pop(block.number, None)
                return x if then is None else then(x)
            case _:
                return self._call(block, x, self.dtype)

    def _call(self, block: nn.Module, *args: Any) -> Tensor:
        return checkpoint(block, *args, use_reentrant=False) if self.checkpointing else block(*args)


def _lists(lists: Iterable[nn.ModuleList]) -> list[nn.ModuleList]:
    """A module list of module lists, typed as what iterating over it gives."""
    return cast("list[nn.ModuleList]", nn.ModuleList(lists))


def _blocks(config: StackConfig, level: Level, skip_width: int, ops: Any, attention: Attention) -> nn.ModuleList:
    """A level's blocks; the first reads the skip."""

    def block(kind: str, index: int) -> nn.Module:
        match kind:
            case "C":
                return ResBlock(level.width, skip_width if index == 0 else 0, config.kernel_size, ops)
            case "T":
                return TimestepBlock(level.width, config.timestep_channels, config.timestep_conditions, ops)
            case "A":
                args = (level.width, level.heads, config.condition_channels, config.self_attention)
                return AttnBlock(*args, attention, ops)
            case _:
                return FeedForwardBlock(level.width, ops)

    return nn.ModuleList(block(kind, index) for index, kind in enumerate(level.pattern * level.depth))


def _repeats(width: int, count: int, ops: Any) -> nn.ModuleList:
    return nn.ModuleList(ops.Conv2d(width, width, 1) for _ in range(count - 1))
