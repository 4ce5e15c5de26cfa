"""Prompt-to-prompt (Hertz et al. 2022): an image of a changed prompt that keeps the attention of the first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.interval import ROUNDING
from ..diffusion.settings import NoiseLevel
from ..errors import InvalidSettings
from ..models import AroundAttention, AttentionCall
from ..models.blocks import resize
from .attention import AttentionController, NetworkCall
from .maps import WordMaps, attention_parts, stretched
from .words import Alignment


@dataclass(frozen=True, kw_only=True)
class EditStrength:
    """How much of the first prompt's image is kept.

    text: until this part of the run the image looks at the words as the first image did.
    image: until this part of the run it looks at its own parts as the first image did: keeps shapes.
    pooled: until this part of the run the pooled tokens are those of the first prompt.
    blend: what is further from the changed words than this share of their highest attention stays as it was; 0: all
        may change.

    The defaults were found with the tiny cascade: with `text` 0.8, or `pooled` above 0, many backgrounds stay as they
    were; with `text` 0.4 and below, shapes whose place the prompt leaves open move.

    Raises InvalidSettings for a number outside 0 to 1.
    """

    text: float = 0.6
    image: float = 0.4
    pooled: float = 0.0
    blend: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise InvalidSettings(f"an edit's {name} must be from 0 to 1, got {value}")


class PromptToPrompt(AttentionController):
    """Controls a run whose images are sources, and then as many targets, with the same seeds.

    alignment: of the prompts. weights: [n], a factor of the attention to each text token of the target.
    """

    def __init__(self, alignment: Alignment, strength: EditStrength, weights: Tensor | None = None) -> None:
        self.alignment, self.strength, self.weights = alignment, strength, weights
        self.maps = WordMaps()

    @property
    def keeping(self) -> LocalBlend | None:
        """What the run keeps of the first images."""
        return LocalBlend(self) if self.strength.blend else None

    def changed(self) -> Tensor | None:
        """Where the changed words are seen, in the source or in the target: 0 or 1, [n, 1, h, w].

        None before the first step, and where nothing is blended.
        """
        if self.maps.recorded == 0:
            return None
        found = []
        for half, places in ((0, self.alignment.removed), (1, self.alignment.added)):
            if places:
                seen = stretched(self.maps.of(places).chunk(2)[half])
                found.append(seen > self.strength.blend)
        return torch.stack(found).any(0).float() if found else None

    def around(self, call: NetworkCall) -> AroundAttention | None:
        strength = self.strength
        acting = _is_in_first(max(strength.text, strength.image, strength.pooled), call)
        if True not in call.with_prompt or not (acting or strength.blend or self.weights is not None):
            return None
        return lambda block: self._attend(call, block)

    def _attend(self, call: NetworkCall, block: AttentionCall) -> Tensor:
        made = block.plain()
        rows = call.rows(len(made))
        assert rows is not None
        q, k, v = (x[rows] for x in (block.q, block.k, block.v))
        half = len(q) // 2
        k, v = self._blended(call, k, v, half)
        v = v[half:].unflatten(-1, (block.heads, -1)).transpose(1, 2).float()
        results, seen = [], []
        text = call.tokens.text_among(k.shape[1])
        for _, attention in attention_parts(q, k, block.heads):
            source, target = attention.chunk(2)
            target = self._controlled(call, source, target, text)
            if self.strength.blend:
                seen.append(torch.cat([source[..., text], target[..., text]]).mean(1))
            results.append(target @ v)
        if seen:
            self.maps.add(torch.cat(seen, 1), block.size)
        made = made.clone()
        made[rows.start + half : rows.stop] = torch.cat(results, 2).transpose(1, 2).flatten(-2).to(made)
        return made

    def _blended(self, call: NetworkCall, k: Tensor, v: Tensor, half: int) -> tuple[Tensor, Tensor]:
        """Keys and values with the source's pooled tokens for the target too, in the first part of the run."""
        if not _is_in_first(self.strength.pooled, call):
            return k, v
        pooled = slice(k.shape[1] - call.tokens.pooled - call.tokens.images, k.shape[1] - call.tokens.images)
        k, v = k.clone(), v.clone()
        k[half:, pooled], v[half:, pooled] = k[:half, pooled], v[:half, pooled]
        return k, v

    def _controlled(self, call: NetworkCall, source: Tensor, target: Tensor, places: slice) -> Tensor:
        """The target's attention [n, heads, part, m] with the source's in the place of a part of it.

        places: of the text tokens.
        """
        image, text, rest = target[..., : places.start], target[..., places], target[..., places.stop :]
        if _is_in_first(self.strength.image, call):
            image = source[..., : places.start]
        if _is_in_first(self.strength.text, call):
            mapping, new = (x.to(text) for x in (self.alignment.mapping, self.alignment.new))
            text = torch.lerp(source[..., places] @ mapping.T, text, new)
            rest = source[..., places.stop :]
        if self.weights is not None:
            text = text * self.weights.to(text)
        whole = torch.cat([image, text, rest], dim=-1)
        return whole / whole.sum(-1, keepdim=True)


class LocalBlend:
    """Keeps the source where the changed words are not seen."""

    def __init__(self, edit: PromptToPrompt) -> None:
        self.edit = edit

    def noised(self, x: Tensor, level: NoiseLevel) -> Tensor:
        return self.restored(x)

    def restored(self, x0: Tensor) -> Tensor:
        mask = self.edit.changed()
        if mask is None:
            return x0
        source, target = x0.chunk(2)
        return torch.cat([source, torch.lerp(source, target, resize(mask, x0.shape[-2:]).to(x0))])


def _is_in_first(part: float, call: NetworkCall) -> bool:
    """Whether a call is in the first part of the run; a step at its very end is not, however its percent is rounded."""
    return call.percent < part - ROUNDING
