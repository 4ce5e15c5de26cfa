"""The internal form of a LoRA: changes of weights, learned tokens, and the training settings that its file holds.

In every format, a change belongs to one parameter of one network, under our name for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..errors import IncompatibleCheckpoint
from ..models.stage_c import STAGE_C_1B, STAGE_C_3_6B, StageCConfig
from .changes import Change, LoHa, LoKr, LowRank

TABLE = "text_model.embeddings.token_embedding.weight"
"""The text encoder's token table [tokens, width]."""
MAX_TOKENS = 1000
"""Learned tokens of a file; trainers write a few. All of them are looked for in every prompt."""


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
        """The ranks of its changes that have one, ascending."""
        return tuple(sorted({change.rank for change in self._ranked()}))

    @property
    def alphas(self) -> tuple[float, ...]:
        return tuple(sorted({change.alpha for change in self._ranked()}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What its changes are: LoRA, DoRA, LoHa, LoKr, OFT, full change, rows; the most frequent first."""
        counts = Counter(change.title for changes in self.changes.values() for change in changes.values())
        return tuple(kind for kind, _ in counts.most_common())

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

    def _ranked(self) -> list[LowRank | LoHa | LoKr]:
        everything = (change for changes in self.changes.values() for change in changes.values())
        return [c for c in everything if isinstance(c, LowRank | LoHa) or (isinstance(c, LoKr) and c.rank)]


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
