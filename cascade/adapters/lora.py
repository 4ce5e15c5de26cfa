"""The internal form of a LoRA: changes of weights, learned tokens, and the training settings that its file holds.

In every format, a change belongs to one parameter of one network, under our name for it. Its scale is alpha / rank (Hu
et al. 2021, LoRA, section 4.1); DoRA is Liu et al. 2024, eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleCheckpoint
from ..models.stage_c import STAGE_C_1B, STAGE_C_3_6B, StageCConfig

TABLE = "text_model.embeddings.token_embedding.weight"
"""The text encoder's token table [tokens, width]."""
MAX_TOKENS = 1000
"""Learned tokens of a file; trainers write a few. All of them are looked for in every prompt."""


@dataclass(frozen=True)
class LowRank:
    """weight + up @ down * alpha / rank; with DoRA each row or column of the sum is then scaled to a learned length.

    down: [rank, in], for a convolution [rank, in, kh, kw].
    up: [out, rank], for a convolution [out, rank, 1, 1].
    dora: the lengths, [out, 1, ...] or [1, in, ...], with as many dimensions as the weight.
    """

    down: Tensor
    up: Tensor
    alpha: float
    dora: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def outputs(self) -> int:
        return self.up.shape[0]

    def fits(self, shape: torch.Size) -> bool:
        """Whether it can change a weight of this shape.

        OneTrainer treats a depthwise convolution [c, 1, kh, kw] as one row of c * kh * kw numbers: up [1, rank, 1, 1],
        down [rank, c, kh, kw].
        """
        depthwise = len(shape) == 4 and shape[1] == 1
        rows = self.up.shape[0] == shape[0] and self.down[0].numel() == math.prod(shape[1:])
        one_row = depthwise and self.up.shape[0] == 1 and tuple(self.down.shape[1:]) == (shape[0], *shape[2:])
        return len(shape) > 1 and (rows or one_row) and (self.dora is None or _scales(self.dora.shape, shape))

    def delta(self, weight: Tensor) -> Tensor:
        """What is added to the weight: float32, in the weight's shape and on its device."""
        up, down = (factor.to(weight.device, torch.float32).flatten(1) for factor in (self.up, self.down))
        delta = (up @ down).reshape(weight.shape) * self.scale
        if self.dora is None:
            return delta
        dora, base = self.dora.to(weight.device, torch.float32), weight.float()
        changed = base + delta
        axes = [axis for axis in range(changed.dim()) if dora.shape[axis] == 1] or list(range(1, changed.dim()))
        return changed * (dora / lengths(changed, axes)) - base


def lengths(weight: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """The 2-norms of a weight over `axes`, which stay as axes of size 1; by default of its rows, [out, 1, ...].

    Never 0, since DoRA divides by them.
    """
    axes = range(1, weight.dim()) if axes is None else axes
    return torch.linalg.vector_norm(weight, dim=tuple(axes), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _scales(dora: torch.Size, shape: torch.Size) -> bool:
    ones = (1,) * (len(shape) - 2)
    return tuple(dora) in ((shape[0], 1, *ones), (1, shape[1], *ones))


@dataclass(frozen=True)
class Full:
    """weight + value, of any shape."""

    value: Tensor

    @property
    def outputs(self) -> int:
        return self.value.shape[0]

    def fits(self, shape: torch.Size) -> bool:
        return self.value.shape == shape

    def delta(self, weight: Tensor) -> Tensor:
        return self.value.to(weight.device, torch.float32)


@dataclass(frozen=True)
class Rows:
    """values [n, width] added to the rows `indices` [n] of a table."""

    indices: Tensor
    values: Tensor

    @property
    def outputs(self) -> int:
        return int(self.indices.max()) + 1

    def fits(self, shape: torch.Size) -> bool:
        return len(shape) == 2 and self.outputs <= shape[0] and self.values.shape[1] == shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        delta = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        return delta.index_add_(0, self.indices.to(weight.device), self.values.to(weight.device, torch.float32))


Change = LowRank | Full | Rows


@dataclass(frozen=True)
class Token:
    """A learned token: a text that prompts can use, with vectors of its own.

    text: how prompts write the token; "" if the file does not say.
    vectors: [n, width]; the token becomes n tokens of the text encoder.
    initializer: what the vectors are added to: the mean vector of a text's tokens, or of the tokens of the vocabulary
        that match a pattern of the released trainer (`^dog</w>`). None if the vectors are absolute.
    """

    text: str
    vectors: Tensor
    initializer: str | None = None


@dataclass(frozen=True)
class Lora:
    """A LoRA with the tokens learned with it; a stand-alone embedding has tokens only.

    changes: kind of network (stage_c, stage_b, text_encoder) -> our name of a parameter -> its change.
    tokens: in the order of the file.
    training: the training settings in the file, under its trainer's names.
    format: of the file, one of `WRITABLE`.
    path: of the file, for messages.
    """

    changes: Mapping[str, Mapping[str, Change]] = field(default_factory=dict)
    tokens: tuple[Token, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    format: str = "cascade"
    path: str | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its low-rank changes, ascending."""
        return tuple(sorted({change.rank for change in self._low_rank()}))

    @property
    def alphas(self) -> tuple[float, ...]:
        return tuple(sorted({change.alpha for change in self._low_rank()}))

    @property
    def base(self) -> str | None:
        """The released size it was made for ("3.6B", "1B"), "custom", or None if it does not change Stage C."""
        width = self.width
        if width is None:
            return "custom" if self.changes.get("stage_c") else None
        return SIZES.get(width, "custom")

    @property
    def width(self) -> int | None:
        """Channels of the Stage C that it changes; None if its changes do not determine it."""
        for name, change in self.changes.get("stage_c", {}).items():
            for ending, factor in WIDTHS.items():
                if name.endswith(ending) and change.outputs > 1:
                    return change.outputs // factor
        return None

    def renamed(self, texts: Mapping[str, str]) -> Lora:
        """A copy with its tokens renamed.

        Args:
            texts: old text -> new text.

        Raises:
            IncompatibleCheckpoint: it has no such token.
        """
        own = [token.text for token in self.tokens]
        if unknown := [text for text in texts if text not in own]:
            raise IncompatibleCheckpoint(f"no token {unknown[0]}; it has {', '.join(own) or 'none'}", self.path)
        tokens = tuple(replace(token, text=texts.get(token.text, token.text)) for token in self.tokens)
        return replace(self, tokens=tokens)

    def named(self, names: list[tuple[str, str | None]]) -> Lora:
        """A copy whose tokens without a text get these texts and initializers, in order.

        Raises:
            IncompatibleCheckpoint: more or fewer names than such tokens.
        """
        nameless = sum(not token.text for token in self.tokens)
        if len(names) != nameless:
            raise IncompatibleCheckpoint(f"{nameless} of its tokens need a name, {len(names)} were given", self.path)
        given = iter(names)
        tokens = []
        for token in self.tokens:
            text, initializer = (token.text, token.initializer) if token.text else next(given)
            tokens.append(replace(token, text=text, initializer=initializer))
        return replace(self, tokens=tuple(tokens))

    def _low_rank(self) -> list[LowRank]:
        return [c for changes in self.changes.values() for c in changes.values() if isinstance(c, LowRank)]


RELEASED_STAGE_C: Mapping[str, StageCConfig] = {"3.6B": STAGE_C_3_6B, "1B": STAGE_C_1B}
SIZES = {config.levels[0].width: name for name, config in RELEASED_STAGE_C.items()}
"""Width of a released Stage C -> its name."""

WIDTHS = {
    ".to_q.weight": 1,
    ".to_k.weight": 1,
    ".to_v.weight": 1,
    ".out_proj.weight": 1,
    ".kv_mapper.1.weight": 1,
    ".channelwise.0.weight": 4,
    ".channelwise.4.weight": 1,
    ".mapper.weight": 2,
    ".mapper_sca.weight": 2,
    ".mapper_crp.weight": 2,
    ".depthwise.weight": 1,
    "clip_txt_mapper.weight": 1,
    "clip_txt_pooled_mapper.weight": 4,
    "clip_img_mapper.weight": 4,
    "embedding.1.weight": 1,
}
"""Ending of a parameter's name -> its outputs as a multiple of the network's width."""
